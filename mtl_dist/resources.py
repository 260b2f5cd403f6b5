"""Files that are no Python modules of the package: engine files, launch scripts and the shipped recipes.

The repository keeps each of them once, in the top-level folders `accelerate_configs`, `launch` and `recipes`. A wheel
carries copies of these folders inside the package (see setup.py).
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
IS_CHECKOUT = not (_PACKAGE / "accelerate_configs").is_dir()
"""Whether the package is imported from the repository (also in editable mode) rather than from a wheel."""
ROOT = _PACKAGE.parent if IS_CHECKOUT else _PACKAGE
"""Folder that holds `accelerate_configs`, `launch` and `recipes`."""
ENGINES = ROOT / "accelerate_configs"
"""One YAML file of accelerate per engine."""
TRAIN_SCRIPT = ROOT / "launch" / "train.py"
"""The script that `accelerate launch` runs in each process."""
RECIPES = ROOT / "recipes"


def engine_names() -> list[str]:
    """Names of the engine files without `.yaml`, sorted."""
    return sorted(path.stem for path in ENGINES.glob("*.yaml"))
