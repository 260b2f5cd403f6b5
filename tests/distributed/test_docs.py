"""Runs every command of README.md and docs/ as it is written there, with a tiny quickstart."""

import compileall
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.distributed.launching import ROOT, TIMEOUT
from tests.distributed.pages import DONE, read_page, script_of
from tests.utils.tickets import COLUMNS, csv_text, tickets
from tests.utils.tiny import tiny_encoder

PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
COPIED = ("launch", "mtl_dist", "recipes", "accelerate_configs")
FILES = ("Makefile", "pyproject.toml", "constraints.txt")
EXAMPLES = {
    "reviews.csv": "text\nWhat a waste of two hours.\n",
    "mine.jsonl": '{"text": "What a waste of two hours.", "sentiment": "negative"}\n',
    "tickets.csv": csv_text(tickets(240), COLUMNS),
}
"""The reader's own files, which pages only name."""
NO_TEST = re.compile("network|GPU|container engine|cluster|compile|hours|tests", re.IGNORECASE)
"""Reasons for which a command may be marked as not run."""


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny version of assets/quickstart: an encoder of the same depth, and rows with the same columns."""
    folder = tmp_path_factory.mktemp("assets") / "quickstart"
    tiny_encoder(folder / "encoder", layers=6, positions=128)
    domains, moods = ("tweets", "movie", "amazon", "nyt"), ("negative", "neutral", "positive")
    (folder / "data").mkdir()
    for split, rows in (("train", 48), ("validation", 12), ("test", 12)):
        texts = [
            {"text": f"{split} cat{row}", "domain": domains[row % 4], "sentiment": moods[row % 3]}
            for row in range(rows)
        ]
        pq.write_table(pa.Table.from_pylist(texts), folder / "data" / f"{split}.parquet")
    files = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.glob("*/*"))}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (folder / "manifest.json").write_text(json.dumps(hashes))  # so that `make setup` finds it complete
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, quickstart: Path) -> Path:
    """Copy of the files that commands use, after set-up and with compiled modules."""
    folder = tmp_path_factory.mktemp("prepared") / "repository"
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    for name in (*FILES, "launch/install.sh"):
        os.utime(folder / name, (0, 0))  # else make would consider the environment out of date
    shutil.copytree(quickstart, folder / "assets" / "quickstart")
    (folder / ".venv").symlink_to(Path(sys.prefix))
    assert (folder / ".venv" / ".installed").exists(), "`make setup` makes it"
    assert compileall.compile_dir(folder / "mtl_dist", quiet=1)
    return folder


@pytest.fixture
def repository(tmp_path: Path, prepared: Path) -> Path:
    """Copy of the prepared repository for a single page."""
    return shutil.copytree(prepared, tmp_path / "repository", symlinks=True)


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_a_page_give_the_documented_results(name: str, repository: Path) -> None:
    page = read_page((ROOT / name).read_text(encoding="utf-8"))
    for reason in page.left_out:
        assert NO_TEST.search(reason), reason
    for file, text in (EXAMPLES | page.files).items():
        (repository / file).write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["bash", "-c", script_of(page)],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(repository), "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    printed = re.split(f"^{DONE} .*\n", done.stdout, flags=re.MULTILINE)
    assert len(printed) == len(page.commands) + 1, f"{name}:{page.commands[len(printed) - 1].line}\n{printed[-1]}"
    for command, output in zip(page.commands, printed, strict=False):
        for line in command.printed:
            assert line in output, f"{name}:{command.line}\n{output}"
        assert "Traceback" not in output, f"{name}:{command.line}\n{output}"


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for path, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        if anchor:
            headings = re.findall("^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings]


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for name in PAGES[1:]:
        assert name == "docs/README.md" or f"({Path(name).name})" in index, name


def test_an_unknown_or_misplaced_mark_is_refused() -> None:
    """A typo in a mark would otherwise skip a command."""
    with pytest.raises(ValueError, match="'not runs: x' is none of"):
        read_page("<!-- not runs: x -->\n```bash\ntrue\n```\n")
    with pytest.raises(ValueError, match="not directly above"):
        read_page("<!-- exit: 2 -->\n\n```bash\ntrue\n```\n")
