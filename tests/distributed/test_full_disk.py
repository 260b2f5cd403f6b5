"""A full disk on two processes: only rank 0 writes, both end with its error, and neither waits for the other."""

import json
import mmap
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from mtl_dist.config.load import parse, resolved_yaml
from tests.distributed.launching import forked, launch
from tests.utils.disks import disks_unavailable, small_disk
from tests.utils.tiny import tiny_recipe_file

pytestmark = pytest.mark.skipif(disks_unavailable() is not None, reason=str(disks_unavailable()))

KIB, PAGE = 1 << 10, mmap.PAGESIZE
CASES: dict[str, tuple[int, tuple[str, ...], str]] = {
    # Free space besides recipe.yaml and setup.json, overrides, and the file that cannot be written.
    "a checkpoint": (40 * KIB, ("checkpoint.every_steps=100",), "checkpoints/step-0000000004"),
    "the model, after checkpoints": (40 * KIB, ("checkpoint.every_steps=100", "checkpoint.on_error=continue"), "model"),
    "a line": (0, (), "metrics.jsonl"),
    "the model, after lines": (0, ("checkpoint.on_error=continue",), "model"),
}


def arguments_of(folder: Path, case: str) -> list[str]:
    _, settings, _ = CASES[case]
    return ["--config", str(folder / "recipe.yaml"), f"output_dir={folder / case / 'run'}", *settings]


def disk_for(folder: Path, case: str) -> AbstractContextManager[Path]:
    """Disk with the free space of the case after recipe.yaml, whose size depends on paths, and a page of setup.json."""
    recipe = resolved_yaml(parse(arguments_of(folder, case)).recipe).encode()
    return small_disk(folder / case, (-(-len(recipe) // PAGE) + 1) * PAGE + CASES[case][0])


def test_both_ranks_end_with_the_error_of_the_rank_that_writes(tmp_path: Path) -> None:
    """One pair of processes runs all cases, so a rank that behaved differently would also fail the later cases."""
    tiny_recipe_file(tmp_path)
    common = {"accumulation": 1, "engine": "data parallel", "without": None}
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps([{"arguments": arguments_of(tmp_path, case)} | common for case in CASES]))
    with ExitStack() as disks:
        for case in CASES:
            disks.enter_context(disk_for(tmp_path, case))
        forked("tests/distributed/worker.py", str(file), processes=2, logs=tmp_path / "logs")
        left = {case: {path.name for path in (tmp_path / case / "run").iterdir()} for case in CASES}
    first, second = (json.loads(Path(f"{file}.{rank}").read_text()) for rank in range(2))
    assert first == second
    for error, (case, (*_, path)) in zip(first, CASES.items(), strict=True):
        assert error.startswith(f"cannot write {tmp_path / case / 'run' / path}: ")
        assert "No space left on device" in error
        assert left[case] - {"checkpoints"} == {"recipe.yaml", "setup.json", "metrics.jsonl"}


def test_a_launch_prints_the_error_once(tmp_path: Path) -> None:
    tiny_recipe_file(tmp_path)
    case = "the model, after checkpoints"
    with disk_for(tmp_path, case):
        done = launch("launch/train.py", *arguments_of(tmp_path, case), processes=2)
    assert done.returncode == 1
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert error.startswith(f"error: cannot write {tmp_path / case / 'run' / 'model'}: ")
    warnings = [line for line in done.stdout.splitlines() if "training continues (checkpoint.on_error)" in line]
    assert len(warnings) == 3  # one at the end of each phase
