"""The package as users install it: a wheel, in an environment without this repository, used in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.distributed.launching import ROOT, TIMEOUT
from tests.utils.quickstart_archives import as_program, small_archives

pytestmark = pytest.mark.repeat
STEPS = tuple(f"phases.{phase}.{word}" for phase in range(3) for word in ("steps=5", "epochs=null"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # because a build leaves files beside what it builds
    for name in ("mtl_dist", "launch", "accelerate_configs", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(source))
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The folder of programs of an environment with the wheel and all other packages of this one."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", str(wheel))
    # Added to the path by a .pth file, a folder does not have its own .pth files read: no editable install is seen.
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    (Path(packages) / "packages_of_the_tests.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python.parent


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words, "--no-index", "--quiet"]
    done = subprocess.run(command, env=without_repository(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def without_repository() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def printed(folder: Path, *command: str | Path) -> str:
    """What a command prints that is run in `folder`; fails with its output where its exit code is not 0."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=without_repository() | {"PATH": os.defpath},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def summary_of(run: Path) -> dict[str, object]:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def test_the_wheel_has_engine_files_scripts_and_recipes_as_the_repository_has_them(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as members:
        for folder in ("accelerate_configs", "launch", "recipes"):
            wanted = {file.name: file.read_bytes() for file in (ROOT / folder).iterdir() if file.is_file()}
            prefix = f"mtl_dist/{folder}/"
            names = [name for name in members.namelist() if name.startswith(prefix)]
            assert {name.removeprefix(prefix): members.read(name) for name in names} == wanted


def test_all_that_a_user_does_works_without_the_repository(tmp_path: Path, programs: Path) -> None:
    """Fetch the quickstart, train it on one process and on two, and use the result."""
    folder = tmp_path / "empty folder"
    folder.mkdir()
    program = programs / "mtl-dist"
    where = printed(folder, programs / "python", "-c", "import mtl_dist; print(mtl_dist.__file__)")
    assert not Path(where.strip()).is_relative_to(ROOT)
    sources = small_archives(tmp_path / "archives")
    printed(folder, programs / "python", "-c", as_program(sources), "quickstart", "q", "--archives", "../archives")
    train = (program, "train", "q/quickstart.yaml", *STEPS)
    printed(folder, *train, "--engine", "cpu")
    assert summary_of(folder / "q" / "run")["world_size"] == 1
    printed(folder, *train, "--engine", "multi_cpu", "--num-processes", "2", "output_dir=two")
    assert summary_of(folder / "two")["world_size"] == 2
    (folder / "texts.txt").write_text("tweets so3\nmovie cat1\n", encoding="utf-8")
    lines = printed(folder, program, "predict", "q/run", "texts.txt", "--task", "domain").splitlines()
    assert [json.loads(line)["label"] in ("tweets", "movie", "amazon", "nyt") for line in lines] == [True, True]
    printed(folder, program, "export", "q/run", "classifier", "--task", "sentiment")
    assert (folder / "classifier" / "model.safetensors").is_file()
    printed(folder, program, "report", "q/run", "two")
    assert (folder / "comparison.html").is_file()
    dry = printed(folder, program, "submit", "--backend", "local", "--processes-per-node", "1", *train[2:], "--dry-run")
    assert str(ROOT) not in dry
