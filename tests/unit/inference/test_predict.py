"""`predict` against the model called on one text at a time."""

import csv
import gzip
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoTokenizer

from mtl_dist.__main__ import main
from mtl_dist.errors import UserError
from mtl_dist.inference import predict
from mtl_dist.inference.finished_run import open_run
from mtl_dist.inference.predict import Predictor
from mtl_dist.models.multitask import MultitaskTransformer
from tests.utils.in_process import run_here
from tests.utils.tiny import WORDS, tiny_recipe

TEXTS = [" ".join(WORDS[(7 * row + 3 * word) % len(WORDS)] for word in range(1 + 5 * row % 11)) for row in range(23)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in which `topic` learns from pairs, and rows without text are left out."""
    folder = tmp_path_factory.mktemp("predict")
    changes = ("tasks.topic.text=[text, text]", "data.empty_text=skip", "model.pooling=mean", "optimizer.lr=1e-2")
    recipe = tiny_recipe(folder, *changes)
    run_here(recipe)
    return Path(recipe.output_dir)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several windows for TEXTS, the last one not full."""
    monkeypatch.setattr(predict, "WINDOW_BATCHES", 2)


@torch.no_grad()
def expected(run: Path, task: str, rows: Sequence[Sequence[str]]) -> np.ndarray:
    model = MultitaskTransformer.from_pretrained(run / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "model")
    scores = []
    for row in rows:
        tokens = tokenizer(*row, return_tensors="pt", truncation=True, max_length=32)
        logits = model(tokens["input_ids"], tokens["attention_mask"], task, tokens["token_type_ids"])
        scores.append(logits[0].softmax(dim=-1))
    return torch.stack(scores).numpy()


def of_json(text: str) -> tuple[np.ndarray, list[str]]:
    rows = [json.loads(line) for line in text.splitlines()]
    return np.array([list(row["scores"].values()) for row in rows]), [row["label"] for row in rows]


def standard_input(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)))


def predicted(*arguments: str | Path) -> int:
    return main(["predict", *map(str, arguments)])


def test_scores_are_in_the_order_of_the_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
    assert predicted(run, "--task", "mood", tmp_path / "in.txt", "--batch-size", "5") == 0
    out, err = capsys.readouterr()
    scores, labels = of_json(out)
    wanted = expected(run, "mood", [[text] for text in TEXTS])
    np.testing.assert_allclose(scores, wanted, atol=1e-6)
    assert labels == [str(index) for index in wanted.argmax(axis=1)]
    assert len(set(labels)) > 1
    assert err.splitlines()[-1] == "predict 23/23 rows"


def test_pairs_are_read_from_two_columns_and_written_to_csv(run: Path, tmp_path: Path) -> None:
    rows = [{"a": text, "b": other} for text, other in zip(TEXTS, reversed(TEXTS), strict=True)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.csv"
    options = ["--task", "topic", "--text", "a", "--text", "b", "--to", out, "--batch-size", "4"]
    assert predicted(run, tmp_path / "in.jsonl", *options) == 0
    table = list(csv.reader(out.read_text().splitlines()))
    names = ["art", "cat", "law", "sea"]
    assert table[0] == ["label", *(f"score_{name}" for name in names)]
    wanted = expected(run, "topic", [[row["a"], row["b"]] for row in rows])
    np.testing.assert_allclose(np.array([row[1:] for row in table[1:]], dtype=float), wanted, atol=1e-6)
    assert [row[0] for row in table[1:]] == [names[index] for index in wanted.argmax(axis=1)]


def test_standard_input_and_rows_without_text(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = standard_input(b"text,id\ngood1,1\n,2\nbad1 bad2,3\n")
    monkeypatch.setattr("sys.stdin", given)
    assert predicted(run, "--task", "mood", "-", "--format", "csv") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == {"label": None, "scores": None}
    scores = [list(row["scores"].values()) for row in (rows[0], rows[2])]
    np.testing.assert_allclose(scores, expected(run, "mood", [["good1"], ["bad1 bad2"]]), atol=1e-6)


def test_files_are_read_as_the_recipe_says_for_their_format(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["tasks"]["mood"]["read"] = {"encoding": "cp1252"}
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    wanted = expected(run, "mood", [["bad1 \u00e9"]])
    for name, content in (
        ("in.jsonl", '{"text": "bad1 \u00e9"}'.encode("cp1252")),
        ("in.csv", "text;id\nbad1 \u00e9;1\n".encode()),
    ):
        (tmp_path / name).write_bytes(content)
        assert predicted(copy, "--task", "mood", tmp_path / name) == 0
        np.testing.assert_allclose(of_json(capsys.readouterr().out)[0], wanted, atol=1e-6)


def test_compressed_files_parquet_and_pipes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(b"text,id\nbad1,1\n"))
    pq.write_table(pa.table({"id": [1], "text": ["bad1"]}), tmp_path / "in.parquet")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", 'printf bad1 > "$0"', str(pipe)]):
        for file, *options in ((tmp_path / "in.csv.gz",), (tmp_path / "in.parquet",), (pipe, "--format", "text")):
            assert predicted(run, "--task", "mood", file, *options) == 0
            scores, _ = of_json(capsys.readouterr().out)
            np.testing.assert_allclose(scores, expected(run, "mood", [["bad1"]]), atol=1e-6)


def test_a_row_without_text_is_refused_with_its_column(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["data"]["empty_text"] = "error"
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "in.csv").write_text("text,id\nbad1,1\n ,2\n")
    assert predicted(copy, "--task", "mood", tmp_path / "in.csv") == UserError.exit_code
    hint = "leave the row out, or train with data.empty_text=skip, which gives such rows no label"
    message = f"in.csv line 3: text is empty in column 'text'; {hint}"
    assert message in capsys.readouterr().err


def test_a_bad_row_far_down_is_found_before_the_model_is_loaded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n' * 500 + '{"text": 1}\n')
    monkeypatch.delattr(predict, "Predictor")
    assert predicted(run, "--task", "mood", tmp_path / "in.jsonl", "--to", tmp_path / "o.csv") == UserError.exit_code
    assert "in.jsonl line 501: text column 'text' holds 1, no string" in capsys.readouterr().err


def test_no_file_is_left_by_a_stream_that_ends_early(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", standard_input(b"good1\n" * 40 + b"\xff\n"))
    (tmp_path / "out.csv").write_text("from before")
    options = ["--task", "mood", "-", "--to", tmp_path / "out.csv", "--batch-size", "4"]
    assert predicted(run, *options) == UserError.exit_code
    assert "standard input line 41: byte 0xff is not valid utf-8" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_text() == "from before"


def test_at_most_one_window_of_rows_is_in_memory(run: Path) -> None:
    taken = 0

    def endless() -> Iterator[tuple[str, ...]]:
        nonlocal taken
        while True:
            taken += 1
            yield ("good1",)

    scores = Predictor(open_run(run), "mood", ["text"], batch_size=3).scores(endless())
    assert len(next(scores)) == 6
    assert taken == 6


def test_rows_of_similar_length_share_a_batch(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(open_run(run), "mood", ["text"], batch_size=2)
    widths = []
    monkeypatch.setattr(
        predictor, "_probabilities", lambda batch, mask: widths.append(mask.shape[1]) or np.zeros((len(mask), 3))
    )
    list(predictor.scores([("good1",), ("good1 " * 9,), ("good2",), ("good2 " * 9,)]))
    assert widths == [3, 11]


def test_each_mistake_is_reported_on_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.txt").write_text("good1\n")
    (tmp_path / "in.xls").write_text("good1\n")
    (tmp_path / "folder.csv").mkdir()
    mood = (run, "--task", "mood")
    for arguments, words in (
        ((run, tmp_path / "in.txt"), "--task: missing; choose from topic, mood"),
        ((run, "--task", "moot", tmp_path / "in.txt"), "has no task 'moot'; did you mean mood?"),
        ((*mood, tmp_path / "no.txt"), "no.txt: there is no such file"),
        ((*mood, tmp_path / "folder.csv"), "folder.csv: is a folder; name a file"),
        (
            (*mood, tmp_path / "in.xls"),
            "its name does not say what it is; give --format csv, json, parquet, arrow, text",
        ),
        ((*mood, tmp_path / "in.txt", "--to", "o.xml"), "--to: o.xml: its name ends neither in .jsonl nor in .csv"),
        ((*mood, tmp_path / "in.txt", "--to", tmp_path / "no/o.csv"), "there is no folder"),
        ((*mood, tmp_path / "in.txt", "--batch-size", "0"), "--batch-size: 0 is not at least 1"),
        ((*mood, tmp_path / "in.txt", "--text", "a", "--text", "b"), "2 columns, and task mood has learnt from 1"),
        ((run, "--task", "topic", tmp_path / "in.txt"), "task topic needs pairs of texts"),
    ):
        assert predicted(*arguments) == UserError.exit_code
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
