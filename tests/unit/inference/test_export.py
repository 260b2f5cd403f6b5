"""Folders that `export` writes, loaded as their users load them."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoTokenizer, pipeline

from mtl_dist.__main__ import main
from mtl_dist.config.recipe import ModelConfig
from mtl_dist.errors import TrainingError, UserError
from mtl_dist.inference import export
from mtl_dist.inference import pooled_classifier as exported_classifier
from mtl_dist.inference.finished_run import open_run
from mtl_dist.models.encoder import load_encoder, load_encoder_config
from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.models.multitask import SentenceTransformer as OurSentenceTransformer
from tests.utils.in_process import run_here, summary_of
from tests.utils.tiny import tiny_encoder, tiny_recipe, tiny_tokenizer

TEXTS = ["good1 good2 cat1", "bad1", "so1 law2 unheard-of sea3", "cat1 " * 60]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with mean pooling."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("export"), "model.pooling=mean", "optimizer.lr=1e-2")
    run_here(recipe)
    return Path(recipe.output_dir)


@pytest.fixture
def as_run(run: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """A copy of the run whose model is another, with a random encoder of some kind."""

    def make(kind: str, pooling: str) -> Path:
        shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
        config = ModelConfig(encoder=str(tiny_encoder(tmp_path / "encoder", kind)))
        encoder = load_encoder(config, load_encoder_config(config))
        model = MultitaskTransformer(OurSentenceTransformer(encoder, pooling), {"mood": ("0", "1", "2")})
        model.save_pretrained(tmp_path / "run/model")
        recipe = (run / "recipe.yaml").read_text().replace("pooling: mean", f"pooling: {pooling}")
        (tmp_path / "run/recipe.yaml").write_text(recipe)
        return tmp_path / "run"

    return make


@torch.no_grad()
def ours(run: Path, task: str | None) -> Tensor:
    """Logits of TEXTS, or their vectors, one by one."""
    model = MultitaskTransformer.from_pretrained(run / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "model")
    found = []
    for text in TEXTS:
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
        vectors = model.sentence_transformer(tokens["input_ids"], tokens["attention_mask"])
        found.append(vectors[0] if task is None else model.heads[task](vectors)[0])
    return torch.stack(found)


def piped(folder: Path, **options: Any) -> tuple[Tensor, list[str]]:
    """Logits of TEXTS, by a pipeline, and the names of the classes."""
    classify: Any = pipeline("text-classification", str(folder), **options)
    rows = classify(TEXTS, truncation=True, top_k=None, function_to_apply="none", batch_size=3)
    names = sorted(row["label"] for row in rows[0])
    return torch.tensor([[{one["label"]: one["score"] for one in row}[name] for name in names] for row in rows]), names


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["export", *map(str, arguments)]) == UserError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_pipeline_returns_the_logits_of_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--task", "topic", str(tmp_path / "topic")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'topic'} is written; loaded again, it differs")
    logits, names = piped(tmp_path / "topic")
    assert names == ["art", "cat", "law", "sea"]
    torch.testing.assert_close(logits, ours(run, "topic"), rtol=0, atol=1e-6)
    files = {path.name for path in (tmp_path / "topic").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert not {"auto_map", "mtl_dist"} & json.loads((tmp_path / "topic/config.json").read_text()).keys()
    card: Any = ModelCard.load(tmp_path / "topic/README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-classification")
    assert "trust_remote_code" not in card.text.split("## Recipe")[0]


def test_export_prints_one_line_only(run: Path, tmp_path: Path) -> None:
    """Also where DeepSpeed is installed, which transformers loads as it saves."""
    command = [sys.executable, "-m", "mtl_dist", "export", str(run), "--task", "topic", str(tmp_path / "topic")]
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=True)
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_the_tokenizer_returns_the_inputs_that_the_encoder_takes(as_run: Callable[..., Path], kind: str) -> None:
    folder = as_run(kind, "first_token")
    assert "token_type_ids" in tiny_tokenizer().model_input_names
    export.export_classifier(open_run(folder), "mood", folder / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "out")
    types = {"token_type_ids"} if kind == "roberta" else set()
    assert tokenizer("good1").keys() == {"input_ids", "attention_mask"} | types
    torch.testing.assert_close(piped(folder / "out")[0], ours(folder, "mood"), rtol=0, atol=1e-6)


def test_a_classifier_that_no_class_of_transformers_holds_is_exported_with_code(as_run: Callable[..., Path]) -> None:
    folder = as_run("mpnet", "mean")
    with pytest.raises(UserError, match="--with-code"):
        export.export_classifier(open_run(folder), "mood", folder / "out")
    assert not (folder / "out").exists()
    export.export_classifier(open_run(folder), "mood", folder / "out", with_code=True)
    with pytest.raises(ValueError, match="trust_remote_code"):
        piped(folder / "out", trust_remote_code=False)
    torch.testing.assert_close(
        piped(folder / "out", trust_remote_code=True)[0], ours(folder, "mood"), rtol=0, atol=1e-6
    )
    assert "trust_remote_code=True" in ModelCard.load(folder / "out/README.md").text


def test_exported_code_imports_torch_and_transformers_only() -> None:
    text = Path(exported_classifier.__file__).read_text(encoding="utf-8")
    imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    imported |= {one.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for one in node.names}
    assert {str(name).partition(".")[0] for name in imported} == {"inspect", "typing", "torch", "transformers"}


@pytest.mark.parametrize(("kind", "pooling"), [("bert", "mean"), ("distilbert", "first_token"), ("mpnet", "mean")])
def test_sentence_transformers_returns_the_vectors_of_the_run(
    as_run: Callable[..., Path], kind: str, pooling: str
) -> None:
    folder = as_run(kind, pooling)
    assert main(["export", str(folder), "--sentence-transformers", str(folder / "out")]) == 0
    model = SentenceTransformer(str(folder / "out"), device="cpu")
    vectors = model.encode(TEXTS, batch_size=3, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(torch.as_tensor(vectors), ours(folder, None), rtol=0, atol=1e-6)
    assert model.max_seq_length == 32


@pytest.mark.parametrize(
    ("by", "words"), [(1e-3, "1.0e-03"), (4e-6, "(3.9|4.[01])e-06")]
)  # beyond rounding, and within it
def test_a_folder_with_other_logits_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float, words: str
) -> None:
    stock = export.sequence_classifier

    def off(model: MultitaskTransformer, task: str) -> Any:
        classifier: Any = stock(model, task)
        with torch.no_grad():
            classifier.classifier.bias.add_(by)
        return classifier

    monkeypatch.setattr(export, "sequence_classifier", off)
    with pytest.raises(TrainingError, match=rf"would differ from the run by {words}; not written"):
        export.export_classifier(open_run(run), "mood", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_each_mistake_is_reported_on_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    assert "has no task 'moods'; did you mean mood?" in refused(capsys, run, "--task", "moods", new)
    assert f"{run} is there already" in refused(capsys, run, "--task", "mood", run)
    assert "--task --sentence-transformers is required" in refused(capsys, run, new)
    assert "--with-code: goes with --task" in refused(capsys, run, "--sentence-transformers", "--with-code", new)
    assert f"{new} is no folder; name the output_dir of a run" in refused(capsys, new, "--task", "mood", tmp_path / "o")
    assert "has no recipe.yaml, so it is no run folder" in refused(capsys, tmp_path, "--task", "mood", new)
    (tmp_path / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    assert "has no model/: the run is not finished" in refused(capsys, tmp_path, "--task", "mood", new)
    assert not new.exists()


def test_the_model_of_a_run_has_a_card_with_its_metrics(run: Path) -> None:
    card: Any = ModelCard.load(run / "model/README.md")
    found = {f"test/{one.metric_name}": one.metric_value for one in card.data.eval_results}
    assert len(found) == 4
    assert found.items() <= summary_of(run).items()
