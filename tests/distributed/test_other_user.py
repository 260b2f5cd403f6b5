"""Users without a name or a home folder, and what users can do with each other's runs and caches."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.utils.other_user import (
    folder_of_other_user,
    open_folder,
    other_user_unavailable,
    run_as_other_user,
    run_in_environment,
)
from tests.utils.tiny import tiny_recipe_file

UNAVAILABLE = other_user_unavailable()
pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder with a recipe, and a finished run of it and a cache `cache` of root's, made with umask 022."""
    with open_folder() as folder:
        recipe = tiny_recipe_file(folder)
        for file in folder.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        command = [sys.executable, "launch/train.py", "--config", str(recipe), f"data.cache_dir={folder}/cache"]
        done = run_in_environment(["bash", "-c", 'umask 022; exec "$@"', "bash", *command], {"HOME": str(folder)})
        assert done.returncode == 0, done.stderr
        yield folder


@pytest.fixture
def own(shared: Path) -> Path:
    """A folder of the other user."""
    return folder_of_other_user(shared / f"own{sum(1 for _ in shared.glob('own*'))}")


def train(shared: Path, own: Path, *overrides: str, **variables: str) -> CompletedProcess[str]:
    """Trains as the other user, from a working folder that this user can write."""
    script = Path(__file__).parents[2] / "launch" / "train.py"
    arguments = ["--config", str(shared / "recipe.yaml"), f"output_dir={own}/run", *overrides]
    return run_as_other_user(str(script), *arguments, variables=variables, cwd=own)


def require_finished(done: CompletedProcess[str], own: Path) -> None:
    assert done.returncode == 0, done.stderr
    assert json.loads((own / "run" / "summary.json").read_text())["steps"] == 12
    assert not (own / "~").exists()


def require_one_line(done: CompletedProcess[str], beginning: str) -> None:
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("[")]  # DeepSpeed's import
    assert line.startswith(f"error: {beginning}")
    assert done.returncode == 2


def test_without_home_and_name_a_cache_has_to_be_named(shared: Path, own: Path) -> None:
    require_one_line(train(shared, own), "HOME: not set, and this user has no home folder; set MTL_DIST_CACHE or ")
    assert list(own.iterdir()) == []


@pytest.mark.parametrize("home", [{}, {"HOME": ""}, {"HOME": "/"}, {"HOME": "/nonexistent"}], ids=str)
def test_a_cache_alone_is_enough(shared: Path, own: Path, home: dict[str, str]) -> None:
    settings = ("tracking.wandb=true", "checkpoint.every_steps=4")
    done = train(shared, own, *settings, MTL_DIST_CACHE=str(own / "cache"), **home)
    require_finished(done, own)
    assert "W&B is off" not in done.stdout + done.stderr
    assert "INFO" not in done.stderr, "W&B's service prints its log where it cannot write it"


def test_a_home_that_cannot_be_written_is_named(shared: Path, own: Path) -> None:
    require_one_line(train(shared, own, HOME="/"), "data.cache_dir: cannot write /.cache/mtl_dist (Permission denied)")


@pytest.mark.parametrize("home", [{}, {"HOME": "/"}], ids=str)
def test_another_user_can_use_a_finished_run(shared: Path, own: Path, home: dict[str, str]) -> None:
    run, texts = str(shared / "run"), str(shared / "data" / "topic.test.json")
    for arguments in (
        ("predict", run, texts, "--format", "jsonl", "--task", "topic", "--to", "p.jsonl"),
        ("evaluate", run, "--to", "e.json"),
        ("export", run, "exported", "--task", "topic"),
        ("report", run, "--to", "r.html"),
    ):
        done = run_as_other_user("-m", "mtl_dist", *arguments, variables=home, cwd=own)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in own.iterdir()} == {"p.jsonl", "e.json", "exported", "r.html"}
    assert len((own / "p.jsonl").read_text().splitlines()) == 12


def test_a_cache_of_another_user_is_used_without_writing_it(shared: Path, own: Path) -> None:
    before = sorted(shared.joinpath("cache").rglob("*"))
    done = train(shared, own, f"data.cache_dir={shared}/cache", HOME=str(own))
    require_finished(done, own)
    assert sorted(shared.joinpath("cache").rglob("*")) == before


def test_a_cache_of_another_user_that_lacks_the_data_says_so(shared: Path, own: Path) -> None:
    done = train(shared, own, f"data.cache_dir={shared}/cache", "data.max_length=16", HOME=str(own))
    require_one_line(done, f"data.cache_dir: cannot write {shared}/cache (Permission denied)")


def test_a_cache_that_users_share_is_used_by_both(shared: Path, own: Path) -> None:
    """The other user's entries are used by root, and the reverse, with a folder that both can write."""
    cache = shared / "both"
    cache.mkdir()
    cache.chmod(0o1777)
    require_finished(train(shared, own, f"data.cache_dir={cache}", HOME=str(own)), own)
    entries = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    command = [sys.executable, "launch/train.py", "--config", str(shared / "recipe.yaml"), f"data.cache_dir={cache}"]
    done = run_in_environment([*command, f"output_dir={shared}/second"], {"HOME": str(shared)})
    assert done.returncode == 0, done.stderr
    assert {path for path in cache.iterdir() if path.name != "starts"} == {
        path for path in entries if path.name != "starts"
    }
