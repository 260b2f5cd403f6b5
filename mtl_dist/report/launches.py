"""Description of how a run was launched."""

from collections.abc import Mapping
from typing import Any


def describe_launch(start: Mapping[str, Any]) -> str:
    """Returns processes, engine, precision and device of one start of a run, as setup.json records it."""
    processes = f"{start['world_size']} process{'es' if start['world_size'] > 1 else ''}"
    precision = "" if start["mixed_precision"] in ("no", None) else f", {start['mixed_precision']}"
    micro = f", {start['micro_steps']} micro-steps" if start.get("micro_steps", 1) > 1 else ""
    device = f", {start['device']}" if "device" in start else ""
    return f"{processes} ({start['engine']}{precision}{micro}{device})"
