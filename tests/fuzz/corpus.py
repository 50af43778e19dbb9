"""Inputs that once found something: they are run again by every test."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "findings"


def kept(target: str) -> dict[str, bytes]:
    """Name and bytes of each input that is kept for a target."""
    return {path.name: path.read_bytes() for path in sorted((FOLDER / target).glob("*"))}
