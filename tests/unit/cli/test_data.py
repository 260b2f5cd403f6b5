"""`mtl-dist data`: figures of a recipe's data, on the terminal and as a page."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mtl_dist.cli.main import main
from tests.utils.hostile import change_config
from tests.utils.report_pages import cells, parsed
from tests.utils.tickets import tickets
from tests.utils.tiny import WORDS, tiny_encoder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_encoder(tmp_path_factory.mktemp("encoder"), positions=64))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTL_DIST_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write_recipe(encoder: str, **recipe: Any) -> None:
    model = {"model": {"encoder": encoder}}
    Path("r.yaml").write_text(json.dumps({**model, "batch_size": 64, "data": {"max_length": 24}, **recipe}))


def write_rows(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def source(files: Any, **more: Any) -> dict[str, Any]:
    return {"path": "json", "data_files": files, **more}


def text(number: int, length: int = 6) -> str:
    return " ".join(WORDS[number // 50**place % 50] for place in range(length))


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command prints of the figures."""
    assert main(["data", "r.yaml", *words]) == 0
    return "Tasks\n" + capsys.readouterr().out.partition("Tasks\n")[2]


def test_rows_classes_and_holes_are_counted_per_split(
    folder: Path, encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tickets(300)
    parts = {"train": table[:200], "validation": table[200:240], "test": table[240:]}
    files = {split: write_rows(f"{split}.jsonl", rows) for split, rows in parts.items()}
    labels = ("team", "urgency", "mood")
    write_recipe(encoder, sources={"t": source(files)}, tasks={name: {"source": "t", "label": name} for name in labels})
    out = shown(capsys).splitlines()
    for name in labels:
        counts = {split: Counter(row[name] for row in rows) for split, rows in parts.items()}
        train = [count for label, count in counts["train"].items() if label]
        missing = sum(count[""] for count in counts.values())
        (line,) = [line.split() for line in out if line.startswith(f"  {name} ")]
        rows = [sum(count.values()) - count[""] for count in counts.values()]
        assert line == [
            name,
            "t",
            str(len(train)),
            *map(str, rows),
            str(missing),
            f"{max(train) / min(train):.1f}",
            ":",
            "1",
        ]
        start = out.index(f"Classes of {name}") + 2
        listed = [line.split() for line in out[start : start + len(train)]]
        assert listed == [
            [label, *(str(counts[split][label]) for split in parts)]
            for label, _ in sorted(counts["train"].items(), key=lambda one: (-one[1], one[0]))
            if label
        ]
        assert out[start + len(train)].split() == ["(no", "label)", *(str(counts[split][""]) for split in parts)]


def test_duplicates_conflicts_leaks_and_cut_texts_are_counted(
    folder: Path, encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [{"text": text(number), "label": "xy"[number % 2]} for number in range(40)]
    train += [{"text": text(0), "label": "x"}, {"text": text(1), "label": "x"}, {"text": text(1), "label": "y"}]
    train.append({"text": text(7, 30), "label": "x"})
    test = [{"text": text(1000 + number), "label": "xy"[number % 2]} for number in range(8)] + train[2:5]
    other = [{"text": text(number), "label": "xy"[number % 2]} for number in (1000, 1001, 5000, 5001)]
    files = {"train": write_rows("a.jsonl", train), "test": write_rows("b.jsonl", test)}
    write_rows("c.jsonl", other)
    fresh = write_rows("d.jsonl", [{"text": text(9000 + number), "label": "xy"[number % 2]} for number in range(4)])
    tasks = {"one": source(files), "two": source({"train": "c.jsonl", "test": fresh})}
    write_recipe(encoder, tasks=tasks)
    out = shown(capsys, "--html", "d.html")
    assert "duplicates: 11 rows share 5 texts\n" in out  # texts 0 and 1, and three rows of test that are in train
    assert "texts with different labels in different rows: 1 for one\n" in out
    assert "cut at max_length 24: 1 rows (1.8%)\n" in out
    assert "longest 32\n" in out
    assert "  one: 5 of 11 test rows have a training text (3 of one, 2 of two)\n" in out
    page = parsed(Path("d.html").read_text())
    assert "one: 5 of 11 test rows have a training text (3 of one, 2 of two)" in page.by_id("leaks").text
    assert cells(page.by_id("duplicates").first("table")) == [["one", "11", "5", "one 1"], ["two", "0", "0", "none"]]


def test_the_cache_is_warm_for_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_config(tiny_encoder(Path("encoder")), type_vocab_size=1)  # which leaves out the tokenizer's token types
    rows = [{"text": text(number), "pair": text(number + 7), "label": "xy"[number % 2]} for number in range(60)]
    split = source(write_rows("t.jsonl", rows), text=["text", "pair"], split={"test": 0.3})
    write_recipe("encoder", sources={"t": split}, tasks={"a": {"source": "t"}})
    first = shown(capsys)
    assert list(Path("cache").glob("*/train.arrow"))
    before = {path: path.stat().st_mtime_ns for path in Path("cache").rglob("train*")}
    assert main(["data", "r.yaml"]) == main(["plan", "r.yaml"]) == 0
    out = capsys.readouterr().out
    assert first in out
    assert "tokenizing" not in out
    assert {path: path.stat().st_mtime_ns for path in Path("cache").rglob("train*")} == before


def test_many_tasks_and_classes_stay_readable(folder: Path, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"text": text(number), **{f"label{task}": f"class {number % (2000 if task == 0 else 3)}" for task in range(20)}}
        for number in range(4000)
    ]
    split = {"train": write_rows("t.jsonl", rows), "test": "t.jsonl"}
    tasks = {f"task{task}": {"source": "t", "label": f"label{task}"} for task in range(20)}
    write_recipe(encoder, sources={"t": source(split)}, tasks=tasks)
    out = shown(capsys, "--html", "d.html")
    assert len(out.splitlines()) < 200
    assert len(out) < 12_000
    assert max(map(len, out.splitlines())) < 130
    assert "  ... 1,996 more  3,992  3,992\n" in out
    assert len(Path("d.html").read_text()) < 120_000


def test_names_from_data_are_text_in_the_page(folder: Path, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ("<script>alert(1)</script>", "a\x1b[31m\nb")
    words = (*WORDS[:2], "\u202e")
    rows = [{"text": f"{text(number)} {words[number % 3]}", "label": labels[number % 2]} for number in range(40)]
    files = {
        "train": write_rows("t.jsonl", rows),
        "test": write_rows("u.jsonl", [{"text": "\u202d\u202d", "label": labels[0]}, *rows[:3]]),
    }
    write_recipe(encoder, tasks={"a": source(files)})
    out = shown(capsys, "--html", "d.html")
    assert "\x1b" not in out
    assert "U+202E 14x, U+202D 2x" in out
    page = Path("d.html").read_text()
    assert "<script>alert" not in page
    tree = parsed(page)
    assert "<script>alert(1)</script>" in tree.by_id("classes").text
    assert len(tree.all("script")) == 1
    assert not [node for node in tree.walk() if any(name in node.attributes for name in ("src", "onload", "onclick"))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.max_length=500"], "data.max_length: 500 is more than the 64 positions of the encoder"),
        (["--html", "none/x.html"], "--html: none is no folder"),
        (["--html", "."], "--html: . is a folder; name a file in it"),
        (["tasks.a.label=lable"], "'lable'"),
        (["optimizer.lrr=1"], "command line: optimizer.lrr: unknown key; did you mean optimizer.lr?"),
    ],
)
def test_what_training_would_refuse_is_one_line(
    folder: Path, encoder: str, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    rows = write_rows("t.jsonl", [{"text": text(number), "label": "xy"[number % 2]} for number in range(20)])
    write_recipe(encoder, tasks={"a": source({"train": rows, "test": rows})})
    assert main(["data", "r.yaml", *words]) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Tasks" not in printed.out
