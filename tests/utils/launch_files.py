"""Accelerate config files and arguments, as `accelerate launch` gets them."""

from pathlib import Path
from typing import Any

import yaml

SCRIPT = ["launch/train.py", "--config", "recipe.yaml", "--num_processes", "9"]
"""A script with arguments of its own, after the launcher's."""


def write_config(path: Path, settings: dict[str, Any]) -> str:
    """Writes a config file to `path`, and returns that."""
    path.write_text(yaml.safe_dump(settings))
    return str(path)
