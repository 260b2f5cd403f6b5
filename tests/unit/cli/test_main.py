"""The program `mtl-dist` as a whole: its commands, its help, and mistakes on its command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from mtl_dist import __version__
from mtl_dist.cli.main import main

ROOT = Path(__file__).parents[3]
COMMANDS = (
    *("init", "data"),
    *("train", "plan", "config", "schema", "submit", "predict", "evaluate", "export", "push", "report", "sweep"),
    "quickstart",
)
SLOW = ("torch", "transformers", "datasets", "accelerate", "omegaconf", "numpy", "pyarrow", "wandb", "rich", "psutil")
"""Packages that help does without."""


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line that is printed for a mistake on the command line."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize("words", [("--help",), (), *((name, "--help") for name in COMMANDS)])
def test_help_imports_nothing_slow(words: tuple[str, ...]) -> None:
    slow = (*SLOW, "pydantic") if words == ("--help",) else SLOW  # typer converts values of options by pydantic
    code = (
        "import sys\n"
        "from mtl_dist.cli.main import main\n"
        f"code = main({words!r})\n"
        f"print(code, *(name for name in {slow!r} if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *shown, last = done.stdout.splitlines()
    assert last == "0"
    assert shown[0].startswith(f"Usage: mtl-dist {words[0]} " if len(words) == 2 else "Usage: mtl-dist [OPTIONS]")


def test_all_commands_are_listed_and_described_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert tuple(line.split()[0] for line in listed) == COMMANDS
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


def test_each_command_is_a_file() -> None:
    for name in COMMANDS:
        assert f"def {name}(" in (ROOT / "mtl_dist" / "cli" / f"{name}.py").read_text(encoding="utf-8")


def test_the_module_is_the_program() -> None:
    command = [sys.executable, "-m", "mtl_dist", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"mtl-dist {__version__}\n"


def test_a_shell_completes_commands_and_engines() -> None:
    code = "from mtl_dist.cli.main import main; main([])"
    for words, known in (("mtl-dist pre", "predict"), ("mtl-dist train --engine fs", "fsdp2")):
        environment = {"_MTL_DIST_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": f"{words.count(' ')}"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout.split() == [known], done.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("trian",), "trian: unknown command; did you mean train?"),
        (("--verson",), "--verson: unknown option; did you mean --version?"),
        (("train", "a.yaml", "--enginee", "cpu"), "--enginee: unknown option; did you mean --engine?"),
        (("train",), "the following arguments are required: RECIPE|key=value"),
        (("train", "a.yaml", "--engine"), "--engine: requires an argument"),
        (("train", "a.yaml", "--num-processes", "two"), "--num-processes: 'two' is not a whole number"),
        (("train", "a.yaml", "--mixed-precision", "fp16"), "--mixed-precision: 'fp16' is unknown; did you mean bf16?"),
        (("submit", "--backend", "slrm"), "--backend: 'slrm' is unknown; did you mean slurm?"),
        (("submit", "--backend", "local", "--dry-run=yes"), "--dry-run: does not take a value"),
        (("predict",), "the following arguments are required: RUN, FILE"),
        (("predict", "run"), "the following arguments are required: FILE"),
        (("predict", "run", "a.txt", "b.txt", "c.txt"), "unrecognized arguments: b.txt c.txt"),
        (
            ("predict", "run", "a", "--format", "xml"),
            "--format: 'xml' is unknown; choose from csv, json, jsonl, parquet, arrow, text",
        ),
        (("export", "run", "to"), "one of the arguments --task --sentence-transformers is required"),
        (
            ("export", "run", "to", "--task", "a", "--sentence-transformers"),
            "argument --sentence-transformers: not allowed with argument --task",
        ),
        (("push", "run"), "the following arguments are required: OWNER/NAME"),
        (("quickstart",), "the following arguments are required: DIR"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], line: str
) -> None:
    assert refused(capsys, *words) == f"error: command line: {line}"
