"""Bad input on two processes: one error line, exit code 2, no hang, and an unchanged run folder."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mtl_dist.config.selectors import GRAMMAR
from mtl_dist.environment import ATTEMPT_VARIABLE
from mtl_dist.errors import Interrupted
from tests.distributed.launching import ROOT, TIMEOUT, forked, launch
from tests.utils.hostile import with_code, with_pickled_weights
from tests.utils.tiny import tiny_recipe_file

Row = dict[str, Any]
EARLIER = {"recipe.yaml": "an earlier run's\n", "summary.json": "{}\n"}
"""Files of an earlier run in each output_dir, which must stay unchanged."""


def fifth(**changes: Any) -> Callable[[list[Row]], list[Row]]:
    """Returns an edit that changes row 5."""
    return lambda rows: [row | changes if number == 5 else row for number, row in enumerate(rows)]


FRACTIONAL = "is a fractional number; classes are whole numbers or strings, or named by labels in the recipe"
# Task and split whose rows are edited, the edit, and the error message after the task's key; rows count from 0.
BAD_ROWS: dict[str, tuple[str, str, Callable[[list[Row]], list[Row]], str]] = {
    "label out of range": (
        "mood",
        "test",
        fifth(label=3),
        ": test row 5 (from 0): label '3' is not one of the classes; choose from 0, 1, 2",
    ),
    "unknown class": (
        "topic",
        "test",
        fifth(label="dog"),
        ": test row 5 (from 0): label 'dog' is not one of the classes; choose from art, cat, law, sea",
    ),
    "fractional label": (
        "mood",
        "train",
        fifth(label=0.5),
        ": train row 5 (from 0): label 0.5 " + FRACTIONAL,
    ),
    "empty text": (
        "topic",
        "train",
        fifth(text=" "),
        ": train row 5 (from 0): text is empty; data.empty_text=skip leaves such rows out",
    ),
    "text of another type": (
        "topic",
        "test",
        lambda rows: [row | {"text": number} for number, row in enumerate(rows)],
        ": {file} line 1: text column 'text' holds 0, no string",
    ),
    "missing column": (
        "mood",
        "test",
        lambda rows: [{"txt": row["text"], "label": row["label"]} for row in rows],
        ": {file}: no column 'text'; did you mean txt?",
    ),
    "empty split": ("mood", "train", lambda rows: [], ": the train split has no rows"),
}
BAD_RECIPES: dict[str, tuple[str, str]] = {
    "a typo in a key": ("optimizer.lrr=1", "command line: optimizer.lrr: unknown key; did you mean optimizer.lr?"),
    "a wrong type": ("batch_size=many", "command line: batch_size: 'many' is not a whole number"),
    "an unknown task in a phase": (
        "phases.0.train=[heads.topics]",
        "phases[0].train: no task 'topics'; did you mean topic?",
    ),
    "overlapping selectors": (
        "phases.1.train=[heads, heads.mood]",
        "phases[1].train: heads and heads.mood both name heads.mood",
    ),
    "blocks that overlap in this encoder": (
        'phases.1.train=["blocks[-2:]", "blocks[2]"]',
        "phases[1].train: blocks[-2:] and blocks[2] both name blocks.2",
    ),
    "a phase that trains nothing": (
        "phases.0.train=[]",
        f"phases[0].train: empty; name what trains: {GRAMMAR}",
    ),
    "a phase of which nothing is left": (
        "model.freeze=[heads]",
        "phases[0].train: model.freeze leaves phase 'heads' nothing to train",
    ),
    "a block that the encoder lacks": (
        'phases.1.train=["blocks[4]"]',
        "phases[1].train: blocks[4]: the encoder has 4 blocks, 0 to 3",
    ),
    "a batch smaller than its tasks": ("batch_size=1", "batch_size: 1 is smaller than its 2 tasks"),
    "a batch smaller than the processes": (
        "batch_size=3",
        "batch_size: 3 is too small for 2 processes x 2 micro-steps; at least 4, one example for each",
    ),
    "more tokens than positions": (
        "data.max_length=41",
        "data.max_length: 41 is more than the 40 positions of the encoder",
    ),
    "a missing file": (
        "tasks.mood.data_files.test={folder}/nowhere.json",
        "tasks.mood.data_files.test: there is no file {folder}/nowhere.json",
    ),
    "a missing encoder": (
        "model.encoder={folder}/nowhere",
        "model.encoder: {folder}/nowhere: no folder here, and cannot be loaded: ",
    ),
    "an encoder cut short": (
        "model.encoder={folder}/cut",
        "model.encoder: cannot load the weights of {folder}/cut: ",
    ),
    "an encoder with code": (
        "model.encoder={folder}/code",
        (
            "model.encoder: {folder}/code: its config.json names code of its own (auto_map);"
            " model.trust_remote_code=true allows it"
        ),
    ),
    "an encoder as a pickle": (
        "model.encoder={folder}/pickle",
        "model.encoder: {folder}/pickle has no model.safetensors; weights as pickle files are not read",
    ),
    "a tag that runs code": (
        "model.encoder=!!python/object/apply:os.system ['touch {folder}/ran']",
        (
            "command line: model.encoder: line 1: could not determine a constructor for the tag"
            " 'tag:yaml.org,2002:python/object/apply:os.system'"
        ),
    ),
    "a cache that cannot be written": (
        "data.cache_dir={folder}/recipe.yaml",
        "data.cache_dir: cannot write {folder}/recipe.yaml (File exists); name a folder there, or by MTL_DIST_CACHE",
    ),
}
OPEN_END = ("a missing encoder", "an encoder cut short")
"""Cases whose error line ends with a message of a library."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a valid recipe, encoder and data, and the bad files of all cases."""
    folder = tiny_recipe_file(tmp_path_factory.mktemp("bad_input")).parent
    for case, (task, split, edit, _) in BAD_ROWS.items():
        rows = list(map(json.loads, (folder / f"data/{task}.{split}.json").read_text().splitlines()))
        bad_file(folder, case).write_text("".join(json.dumps(row) + "\n" for row in edit(rows)))
    for name in ("cut", "code", "pickle"):
        shutil.copytree(folder / "encoder", folder / name)
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with_code(folder / "code", folder / "ran")
    with_pickled_weights(folder / "pickle", folder / "ran")
    for case in (*BAD_RECIPES, *BAD_ROWS):
        run = folder / "runs" / case
        run.mkdir(parents=True)
        for name, text in EARLIER.items():
            (run / name).write_text(text)
    return folder


def bad_file(folder: Path, case: str) -> Path:
    return folder / "data" / f"{case}.json"


def arguments_of(folder: Path, case: str) -> list[str]:
    if case in BAD_ROWS:
        task, split, *_ = BAD_ROWS[case]
        override = f"tasks.{task}.data_files.{split}={bad_file(folder, case)}"
    else:
        override = BAD_RECIPES[case][0].replace("{folder}", str(folder))
    return ["--config", str(folder / "recipe.yaml"), f"output_dir={folder / 'runs' / case}", override]


def line_of(folder: Path, case: str) -> str:
    """Returns the expected error message of the case, or its beginning."""
    if case in BAD_ROWS:
        task, *_, message = BAD_ROWS[case]
        return f"tasks.{task}{message}".replace("{file}", str(bad_file(folder, case)))
    return BAD_RECIPES[case][1].replace("{folder}", str(folder))


def untouched(folder: Path, case: str) -> bool:
    run = folder / "runs" / case
    return {path.name: path.read_text() for path in run.iterdir()} == EARLIER


@pytest.fixture(scope="module")
def errors(folder: Path) -> Mapping[str, list[str | None]]:
    """Error of each of two ranks by case; the same pair of processes runs all cases."""
    cases = [*BAD_RECIPES, *BAD_ROWS]
    # A rank that waited for the other, instead of raising the same error, would also fail all cases after its own.
    common = {"accumulation": 2, "engine": "data parallel", "without": None}
    jobs = [{"arguments": arguments_of(folder, case)} | common for case in cases]
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    forked("tests/distributed/worker.py", str(file), processes=2, logs=folder / "logs")
    by_rank = [json.loads(Path(f"{file}.{rank}").read_text()) for rank in range(2)]
    return {case: list(ended) for case, *ended in zip(cases, *by_rank, strict=True)}


def test_bad_files_did_not_run_code(folder: Path, errors: Mapping[str, list[str | None]]) -> None:
    assert {"an encoder with code", "an encoder as a pickle", "a tag that runs code"} <= errors.keys()
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("case", [*BAD_RECIPES, *BAD_ROWS])
def test_bad_input_is_one_line_on_every_rank(folder: Path, errors: Mapping[str, list[str | None]], case: str) -> None:
    first, second = errors[case]
    assert first == second
    assert first is not None
    assert len(first.splitlines()) == 1
    if case in OPEN_END:
        assert first.startswith(line_of(folder, case))
    else:
        assert first == line_of(folder, case)
    assert untouched(folder, case)


@pytest.mark.parametrize("case", ["a typo in a key", "a missing encoder", "fractional label"])
def test_a_launch_with_bad_input_ends_with_one_line_and_code_2(folder: Path, case: str) -> None:
    """The errors occur before torch is imported, at the encoder and in the data."""
    done = launch("launch/train.py", *arguments_of(folder, case), processes=2)
    assert done.returncode == 1  # the launcher's own, whatever its processes ended with
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert line.startswith(f"error: {line_of(folder, case)}")
    # Exit codes by rank: 2, or that of a signal if the launcher ended the rank before it ended by itself.
    codes = dict(re.findall(r"^  rank +: (\d).*\n  exitcode +: (-?\d+) ", done.stderr, re.MULTILINE))
    assert codes["0"] == "2"
    assert codes.get("1", "2") in {"2", str(Interrupted.exit_code), str(-signal.SIGTERM)}
    assert not re.search(r'File ".*(mtl_dist|launch/train\.py)', done.stderr)
    assert untouched(folder, case)


LEAVING = """
import sys
from mtl_dist.cli import worker
leave = worker._wait_for_rank_0
def leaving(*arguments):
    print('leaving', flush=True)
    leave(*arguments)
worker._wait_for_rank_0 = leaving
sys.exit(worker.run_worker(['optimizer.lrr=1']))
"""


@pytest.fixture
def rank_1() -> Iterator[subprocess.Popen[str]]:
    """Process of rank 1, as a launcher starts it, once it has found a typo in the command line."""
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVING],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RANK": "1", ATTEMPT_VARIABLE: "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "leaving\n"
        yield process
        process.kill()


def test_a_faster_rank_leaves_the_error_message_to_rank_0(rank_1: subprocess.Popen[str]) -> None:
    """The launcher ends all processes when one ends, so rank 1 must not end before rank 0 has printed the error."""
    with pytest.raises(subprocess.TimeoutExpired):
        rank_1.wait(timeout=0.1)
    rank_1.terminate()
    _, stderr = rank_1.communicate()
    assert stderr == ""
    assert rank_1.returncode == 2


def test_an_error_that_rank_0_does_not_have_is_printed_by_its_own_rank() -> None:
    code = (
        "import sys; from mtl_dist.cli import worker; worker.SECONDS_FOR_RANK_0 = 0; sys.exit(worker.run_worker(['x']))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RANK": "1", ATTEMPT_VARIABLE: "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: command line: 'x' is not key=value; a recipe file needs --config before it\n"


@pytest.mark.parametrize("ends", [True, False])
def test_a_rank_on_another_machine_is_silent_if_the_launcher_of_rank_0_ends(ends: bool) -> None:
    """That launcher holds the rendezvous store; here a socket takes its place."""
    code = (
        "import sys; from mtl_dist.cli import worker; worker.SECONDS_FOR_RANK_0 = 1; sys.exit(worker.run_worker(['x']))"
    )
    with socket.create_server(("127.0.0.1", 0)) as store:
        port = str(store.getsockname()[1])
        place = {"RANK": "2", "GROUP_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, ATTEMPT_VARIABLE: "0"}
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | place
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.PIPE) as rank:
            connection, _ = store.accept()
            if ends:
                connection.close()
            assert rank.wait(TIMEOUT) == 2
            assert rank.stderr is not None
            assert bool(rank.stderr.read()) != ends
            connection.close()
