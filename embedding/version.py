"""The version of this project, stated only here; `pyproject.toml` reads it."""

VERSION = "0.1.0"
