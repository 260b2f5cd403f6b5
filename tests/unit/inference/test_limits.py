"""`predict`, `evaluate` and `export` at the limits of encoder and tokenizer: exact within, one line beyond."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.normalizers import Replace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from mtl_dist.__main__ import main
from mtl_dist.errors import TrainingError, UserError
from mtl_dist.inference import predict
from mtl_dist.inference.finished_run import open_run
from mtl_dist.models.multitask import MultitaskTransformer
from tests.utils.in_process import run_here, summary_of
from tests.utils.tiny import KINDS, add_word_beyond_table, tiny_encoder, tiny_recipe

PAIRS = ("tasks.topic.text=[text, text]", *(f"phases.{index}.steps=1" for index in range(3)))
Edit = Callable[[Path], object]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in which `topic` learns from pairs, without a checkpoint."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("limits"), *PAIRS, "model.pooling=mean", "data.max_length=20")
    run_here(recipe)
    return Path(recipe.output_dir)


@pytest.fixture
def changed(run: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """A copy of the run with another model folder."""

    def copy(edit: Edit) -> Path:
        shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
        edit(tmp_path / "run/model")
        return tmp_path / "run"

    return copy


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main([str(one) for one in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def texts_in(folder: Path, *texts: str, **columns: Any) -> Path:
    file = folder / "in.jsonl"
    file.write_text("".join(json.dumps({"text": text, **columns}) + "\n" for text in texts))
    return file


def change_weight(name: str, change: Callable[[Tensor], object]) -> Edit:
    """Changes the first weight whose name has `name` in it."""

    def edit(model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        change(next(weight for key, weight in sorted(weights.items()) if name in key))
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    return edit


def makes_no_tokens(model: Path) -> None:
    """The tokenizer of a model without special tokens, so that a text of unseparable marks gives none."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    tokenizer.backend_tokenizer.normalizer = Replace("!", "")
    tokenizer.save_pretrained(model)


# Token types


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_learnt_measured_predicted_and_exported_with_an_encoder_of_one_type(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And by encoders without token types; the tokenizer gives type 1 to the second text."""
    tiny_encoder(tmp_path / "other", kind, type_vocab_size=1)
    recipe = tiny_recipe(tmp_path, *PAIRS, f"model.encoder={tmp_path / 'other'}")
    run_here(recipe)
    run = Path(recipe.output_dir)
    assert main(["evaluate", str(run)]) == 0
    assert "the same figures as in summary.json, to the last bit" in capsys.readouterr().out
    file = texts_in(tmp_path, "cat1 sea2", "good1")
    assert main(["predict", str(run), str(file), "--task", "topic"]) == 0
    rows = [json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines()]
    expected = _scores_without_types(run, ["cat1 sea2", "good1"])
    torch.testing.assert_close(torch.tensor([list(row.values()) for row in rows]), expected, rtol=0, atol=1e-6)
    assert main(["export", str(run), "--task", "topic", "--with-code", str(tmp_path / "out")]) == 0
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    types = tokenizer("cat1", "sea2").get("token_type_ids")
    assert types is None or kind in ("deberta", "deberta-v2")  # which take types, and have no table for them


@torch.no_grad()
def _scores_without_types(run: Path, texts: list[str]) -> Tensor:
    """Probabilities of the classes of `topic` for pairs of a text with itself, each computed alone."""
    model = MultitaskTransformer.from_pretrained(run / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "model")
    batches = [tokenizer(text, text, return_tensors="pt") for text in texts]
    return torch.cat([model(one["input_ids"], one["attention_mask"], "topic").softmax(-1) for one in batches])


# Positions


@pytest.mark.parametrize(("kind", "positions", "most"), [("bert", 19, 19), ("roberta", 21, 19), ("mpnet", 21, 19)])
def test_a_model_with_fewer_positions_than_the_recipe_is_refused(
    changed: Callable[[Edit], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    positions: int,
    most: int,
) -> None:
    def smaller(model: Path) -> None:
        # Loaded as its owner would, without a limit of ours.
        encoder: Any = AutoModel.from_pretrained(tiny_encoder(tmp_path / "small", kind, positions=positions))
        sentences = type(MultitaskTransformer.from_pretrained(model).sentence_transformer)(encoder, "mean")
        MultitaskTransformer(sentences, {"topic": "abcd", "mood": "012"}).save_pretrained(model)

    run = changed(smaller)
    file = texts_in(tmp_path, "cat1")
    for arguments in (
        ("predict", run, file, "--task", "mood"),
        ("evaluate", run),
        ("export", run, "--task", "mood", tmp_path / "out"),
        ("export", run, "--sentence-transformers", tmp_path / "out"),
    ):
        line = refused(capsys, UserError.exit_code, *arguments)
        assert f"recipe.yaml: data.max_length: 20 is more than the {most} positions of the encoder in {run}/" in line
    assert not (tmp_path / "out").exists()


def test_a_text_of_as_many_tokens_as_there_are_positions_is_computed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = texts_in(tmp_path, "cat1 " * 500)
    assert main(["predict", str(run), str(file), "--task", "topic"]) == 0
    assert main(["predict", str(run), str(file), "--task", "mood"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


# Tokens


def test_a_token_beyond_the_table_is_refused_with_its_row_before_anything_is_written(
    changed: Callable[[Edit], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "WINDOW_BATCHES", 1)
    run = changed(lambda model: add_word_beyond_table(model, "zebra"))
    words = "its token 'zebra' has ID 68, and the encoder has 68 of them"
    file = texts_in(tmp_path, *["cat1"] * 5, "so1 zebra", label=1)
    for options in ((), ("--to", tmp_path / "out.csv"), ("--to", tmp_path / "out.jsonl")):
        command = ("predict", run, file, "--task", "mood", "--batch-size", "2", *options)
        assert f"in.jsonl row 5 (from 0): {words}" in refused(capsys, UserError.exit_code, *command)
    command = ("evaluate", run, "--data", file, "--task", "mood", "--to", tmp_path / "out.json")
    assert f"row 5 (from 0): {words}" in refused(capsys, UserError.exit_code, *command)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "in.jsonl"}
    texts_in(tmp_path, "cat1", "so1 zeb", "more6")
    assert main(["predict", str(run), str(file), "--task", "mood"]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert "the same figures as in summary.json, to the last bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [("--task", "mood"), ("--task", "mood", "--with-code"), ("--sentence-transformers",)]
)
def test_a_run_whose_tokenizer_has_more_tokens_than_the_table_is_exported(
    changed: Callable[[Edit], Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    def many(model: Path) -> None:
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
        tokenizer.add_tokens([f"many{index}" for index in range(500)])
        tokenizer.save_pretrained(model)

    assert main(["export", str(changed(many)), *options, str(tmp_path / "out")]) == 0
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) > 500


def test_a_text_without_tokens_is_refused_with_its_row(
    changed: Callable[[Edit], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = changed(makes_no_tokens)
    file = texts_in(tmp_path, "cat1", "!!", label=1)
    words = "row 1 (from 0): the tokenizer makes no token of it"
    assert words in refused(capsys, UserError.exit_code, "predict", run, file, "--task", "mood")
    assert words in refused(capsys, UserError.exit_code, "evaluate", run, "--data", file, "--task", "mood")
    assert main(["predict", str(run), str(texts_in(tmp_path, "cat1")), "--task", "mood"]) == 0


# Numbers


@pytest.mark.parametrize(("value", "words"), [(torch.nan, "NaN"), (torch.inf, "an infinite value")])
@pytest.mark.parametrize("weight", ["heads.mood", "word_embeddings"])
def test_a_model_that_is_not_finite_is_refused_by_the_name_of_the_weight(
    changed: Callable[[Edit], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    value: float,
    words: str,
    weight: str,
) -> None:
    run = changed(change_weight(weight, lambda tensor: tensor.view(-1)[-1].fill_(value)))
    file = texts_in(tmp_path, "cat1")
    for arguments in (
        ("predict", run, file, "--task", "mood"),
        ("evaluate", run),
        ("export", run, "--task", "mood", tmp_path / "out"),
    ):
        line = refused(capsys, UserError.exit_code, *arguments)
        assert f"{run}/model: " in line
        assert weight in line
        assert line.endswith(f" holds {words}")


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_scores_that_are_not_finite_end_prediction_with_their_row(
    changed: Callable[[Edit], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    """Weights are finite and as large as they can be, so that logits overflow."""
    run = changed(change_weight("heads.mood.3.weight", lambda tensor: tensor.fill_(torch.finfo(tensor.dtype).max)))
    command = ("predict", run, texts_in(tmp_path, "cat1", "good1 bad1"), "--task", "mood")
    line = refused(capsys, TrainingError.exit_code, *command, "--to", tmp_path / f"out.{ending}")
    assert "in.jsonl row 0 (from 0): the model's scores for it are not finite" in line
    assert not (tmp_path / f"out.{ending}").exists()
    assert "not finite" in refused(capsys, TrainingError.exit_code, *command)


def test_one_infinite_logit_is_no_score_of_zero(run: Path) -> None:
    predictor = predict.Predictor(open_run(run), "mood", ["text"], 2, "in.txt")

    class Overflowing(torch.nn.Module):
        def forward(self, *_: Any) -> Tensor:
            return torch.tensor([[0.0, 1.0, 2.0], [-torch.inf, 1.0, 2.0]])

    predictor._model = Overflowing()  # type: ignore[assignment]
    with pytest.raises(TrainingError, match=r"^in.txt row 3 \(from 0\): the model's scores for it are not finite$"):
        list(predictor.scores([None, ("cat1",), None, ("cat1",)]))


def test_figures_that_are_not_finite_are_said_and_written_as_null(
    changed: Callable[[Edit], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = changed(change_weight("heads.mood.3.weight", lambda tensor: tensor.fill_(torch.finfo(tensor.dtype).max)))
    assert main(["evaluate", str(run), "--to", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert found["mood"]["loss"] is None
    assert found["topic"]["loss"] == summary_of(run)["test/topic/loss"]
    assert out.count("warning: mood: the loss is not finite") == 1
