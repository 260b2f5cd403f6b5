"""Builds the container image and runs it without network: with Docker, or as root with buildah (see `images`)."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.docker.images import SECONDS, Container, Images, images_here

MEGABYTES = 1400
"""Largest allowed size of the image; docs/docker.md states its size."""
FEW = "few.parquet"
"""File with few rows that replaces the quickstart's data, whose test split takes a minute to evaluate."""
FEW_ROWS = [
    f"tasks.{task}.data_files.{split}=runs/{FEW}" for task in ("domain", "sentiment") for split in ("train", "test")
]
UNNEEDED_FILES = r"""
for name in gcc cc g++ c++ clang make ld nvcc; do command -v "$name"; done
find / -xdev \( -name '*libcuda*' -o -name '*libcudnn*' -o -name '*libnvrtc*' -o -name '*.deb' \)
find /app \( -name 'nvidia*' -o -name triton -o -name '*.a' -o -name '*.whl' -o -name .git \)
find /app \( -name pip -o -name 'pip3*' \)
for folder in ~root/.cache "$HOME/.cache" /var/lib/apt/lists /app/tests; do
  if [ -d "$folder" ]; then find "$folder" -type f; fi
done
true
"""
"""Shell script that prints the names of files that the image does not need."""

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def image() -> Iterator[Images]:
    with images_here() as images:
        if images is None:
            pytest.skip("neither a Docker engine nor, for root, buildah is here")
        images.build()
        yield images


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Folder that any user may write to."""
    folder = tmp_path / "runs"
    folder.mkdir()
    folder.chmod(0o777)
    domains, moods = ("tweets", "movie", "amazon", "nyt"), ("negative", "neutral", "positive")
    texts = [{"text": f"text {row}", "domain": domains[row % 4], "sentiment": moods[row % 3]} for row in range(48)]
    pq.write_table(pa.Table.from_pylist(texts), folder / FEW)
    for parent in (tmp_path, *tmp_path.parents[:2]):  # pytest keeps its folders from other users
        parent.chmod(0o755)
    return folder


def trained(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def steps(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if "train/loss" in line]


def wait_for_a_step(run: Path, container: Container) -> None:
    deadline = time.monotonic() + SECONDS
    while not steps(run):
        assert container.runs, container.wait()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_image_contains_no_unneeded_files(image: Images) -> None:
    """The image has no compiler, no CUDA, no package installer and no cache of one."""
    code, stdout, _ = image.start("sh", "-c", UNNEEDED_FILES, user=0).wait()
    assert (code, stdout) == (0, "")
    assert image.size < MEGABYTES * 1e6


def test_it_trains_the_quickstart_as_an_unprivileged_user(image: Images, runs: Path) -> None:
    """Arguments are keys of the recipe; the run folder is in the mounted volume."""
    code, stdout, stderr = image.start(*FEW_ROWS, "seed=7", volumes={runs: "/app/runs"}).wait()
    assert code == 0, stdout + stderr
    assert [phase["name"] for phase in trained(runs / "quickstart")["phases"]] == ["heads", "upper", "all"]
    assert "\nseed: 7\n" in (runs / "quickstart/recipe.yaml").read_text()
    assert {path.stat().st_uid for path in (runs / "quickstart").rglob("*")} == {1000}


def test_it_trains_another_recipe_as_any_user_and_writes_only_to_volumes(
    image: Images, runs: Path, tmp_path: Path
) -> None:
    """Data and image may be read-only; other commands, such as `predict`, are run by their names."""
    mine, home = tmp_path / "mine", tmp_path / "home"
    mine.mkdir()
    home.mkdir()
    home.chmod(0o777)
    rows = "".join(f"{word} film number {row},{word}\n" for row in range(16) for word in ("good", "bad"))
    (mine / "films.csv").write_text(f"text,mood\n{rows}")
    recipe = {
        "output_dir": "runs/mine",
        "model": {"encoder": "assets/quickstart/encoder", "pooling": "mean"},
        "tasks": {
            "mood": {"path": "csv", "label": "mood", "data_files": dict.fromkeys(("train", "test"), "mine/films.csv")}
        },
        "phases": [{"name": "heads", "train": ["heads"], "steps": 4}],
    }
    (mine / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    where: dict[str, Any] = {
        "volumes": {runs: "/app/runs", mine: "/app/mine:ro", home: "/home/trainer"},
        "user": 4242,
        "read_only": True,
    }
    code, stdout, stderr = image.start("--config", "mine/recipe.yaml", "batch_size=4", **where).wait()
    assert code == 0, stdout + stderr
    assert trained(runs / "mine")["steps"] == 4
    predict = ["python", "-m", "mtl_dist", "predict", "runs/mine", "mine/films.csv"]
    code, stdout, stderr = image.start(*predict, **where).wait()
    assert code == 0, stderr
    assert {json.loads(line)["label"] for line in stdout.splitlines()} <= {"good", "bad"}
    assert len(stdout.splitlines()) == 32


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_container_ends_with_75_and_the_same_command_resumes(
    image: Images, runs: Path, processes: int
) -> None:
    """It is stopped as by `docker stop`, with SIGTERM to the first process."""
    arguments = ["--processes", str(processes), *FEW_ROWS, "phases.2.epochs=8", "tracking.log_every_steps=1"]
    volumes = {runs: "/app/runs"}
    run = runs / "quickstart"
    stopped = image.start(*arguments, volumes=volumes)
    wait_for_a_step(run, stopped)
    stopped.stop()
    code, stdout, stderr = stopped.wait()
    assert code == 75, stdout + stderr
    assert "stopped by SIG" in stderr
    assert "Traceback" not in stderr
    done = len(steps(run))
    code, stdout, stderr = image.start(*arguments, volumes=volumes).wait()
    assert code == 0, stdout + stderr
    assert f"resuming from step-{done:010d}" in stdout
    assert trained(run)["world_size"] == processes
    assert [line["step"] for line in steps(run)] == list(range(1, trained(run)["steps"] + 1))
    assert trained(run)["steps"] > done


def test_a_wrong_key_gives_one_error_line_and_exit_code_2(image: Images) -> None:
    code, stdout, stderr = image.start("optimizer.learning_rate=1").wait()
    assert (code, stdout) == (2, "")
    assert stderr.count("\n") == 1
    assert "optimizer.learning_rate: unknown key" in stderr
    code, _, stderr = image.start("recipes/seed.yaml").wait()
    assert code == 127
    assert "a recipe needs --config before it" in stderr


def test_the_environment_is_set_to_offline(image: Images) -> None:
    code, stdout, _ = image.start("env").wait()
    assert code == 0
    assert {"HF_HUB_OFFLINE=1", "WANDB_MODE=offline"} <= set(stdout.splitlines())
    assert not any("=http" in line for line in stdout.splitlines()), os.linesep.join(stdout.splitlines())
