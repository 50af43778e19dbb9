"""x"""
from pathlib import Path
from typing import Any

import yaml

from deployments.errors import StartError


def read_config(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())
