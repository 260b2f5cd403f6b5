"""Imported objects are exempt from garbage collection, objects created later are not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BEGIN = "import gc\nfrom mtl_dist.startup import without_garbage_collection\n"
GUARD = "with without_garbage_collection():\n"


@pytest.mark.parametrize(
    "code",
    [
        f"{GUARD} assert not gc.isenabled()\n import colorsys\nassert gc.get_freeze_count() > 1000",
        f"try:\n {GUARD}  import is_not_there\nexcept ImportError:\n pass",
        f"import torch\n{GUARD} assert gc.isenabled()\nassert gc.get_freeze_count() == 0",
    ],
    ids=["imported", "not found", "imported before"],
)
def test_objects_created_after_the_block_are_collected(code: str) -> None:
    later = "\nassert gc.isenabled()\ncircle = []\ncircle.append(circle)\ndel circle\nassert gc.collect() > 0"
    subprocess.run([sys.executable, "-c", BEGIN + code + later], cwd=ROOT, check=True)
