"""Exports one task of a run for `transformers.pipeline`, or its encoder for sentence-transformers."""

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtl_dist.errors import TrainingError, UserError
from mtl_dist.inference.finished_run import FinishedRun, open_run
from mtl_dist.inference.pooled_classifier import PooledClassifier, PooledClassifierConfig
from mtl_dist.inference.sequence_classification import sequence_classifier
from mtl_dist.io import atomic_folder
from mtl_dist.models.encoder import has_remote_code, quiet_transformers
from mtl_dist.models.limits import limits_of
from mtl_dist.models.model_card import CARD, model_card
from mtl_dist.models.multitask import SETTINGS, MultitaskTransformer
from mtl_dist.run_files import check_output

TOLERANCE, ROUNDING = 1e-6, 1e-5
"""Largest allowed difference between the outputs of an exported folder and those of the run, relative to the largest
output or 1: computed in float64, and in the dtype of the weights, whose rounding alone changes logits by 2e-6 between
batches of one text and of many."""
_PIPELINE = """\
```python
from transformers import pipeline

classify = pipeline("text-classification", FOLDER{trust})
classify("some text", truncation=True)
```
"""
_SEQUENCE_NOTE = """
The classes are those of transformers. The head is Linear, ReLU, Linear, written into what the stock class has, so
that some weights are very large or small and there may be one more block than the encoder has: for inference in
float32 or bfloat16, not in float16, and not for further training."""
_CODE_NOTE = """
The folder brings `pooled_classifier.py`, which `trust_remote_code=True` allows to run; read it first, it is short."""
_EMBEDDINGS = """\
```python
from sentence_transformers import SentenceTransformer

SentenceTransformer(FOLDER).encode(["some text"])
```
"""


def export_run(
    run: str | Path,
    folder: Path,
    *,
    task: str | None = None,
    sentence_transformers: bool = False,
    with_code: bool = False,
) -> float:
    """Writes the classifier of `task`, or the encoder for sentence-transformers, to `folder`, which is new or empty.

    Returns the largest difference between the outputs of what is written and those of the run's model. `with_code`
    brings a class with the folder, for encoders whose class in transformers cannot hold the classifier. Raises
    UserError and TrainingError.
    """
    if task is None and not sentence_transformers:
        raise UserError("command line: one of the arguments --task --sentence-transformers is required")
    if task is not None and sentence_transformers:
        raise UserError("command line: argument --sentence-transformers: not allowed with argument --task")
    if with_code and sentence_transformers:
        raise UserError("--with-code: goes with --task; sentence-transformers needs no code of ours")
    finished = open_run(run)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; name a new folder")
    check_output("export", folder, (), finished.folder)
    if task is None:
        return export_encoder(finished, folder)
    finished.check_task(task)
    return export_classifier(finished, task, folder, with_code)


def export_classifier(run: FinishedRun, task: str, folder: Path, with_code: bool = False) -> float:
    """Writes the classifier of `task`; returns the largest difference of its logits, measured on what is written.

    Raises UserError where the encoder's class in transformers cannot hold it and `with_code` is not set.
    """
    model = _load_plain_model(run)
    classifier = _pooled_classifier(model, task) if with_code else sequence_classifier(model, task)
    tokenizer = _tokenizer_for(run, model)
    trust, note = (", trust_remote_code=True", _CODE_NOTE) if with_code else ("", _SEQUENCE_NOTE)
    usage = _PIPELINE.format(trust=trust) + note
    with atomic_folder(folder) as partial, quiet_transformers():
        classifier.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        labels = {task: model.labels[task]}
        card = model_card(run.recipe, labels, run.summary, "transformers", "text-classification", usage)
        (partial / CARD).write_text(card, encoding="utf-8")
        again: Any = type(classifier).from_pretrained(partial)
        ids, mask = _sample(tokenizer, run.recipe.data.max_length, model.sentence_transformer.encoder)
        return _compare(
            lambda: again(input_ids=ids, attention_mask=mask).logits, lambda: model(ids, mask, task), again, model
        )


def export_encoder(run: FinishedRun, folder: Path) -> float:
    """Writes the encoder for sentence-transformers; returns the largest difference of its hidden states."""
    model = _load_plain_model(run)
    encoder: Any = model.sentence_transformer.encoder
    tokenizer = _tokenizer_for(run, model)
    labels = model.labels
    card = model_card(run.recipe, labels, run.summary, "sentence-transformers", "sentence-similarity", _EMBEDDINGS)
    with atomic_folder(folder) as partial, quiet_transformers():
        encoder.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for name, content in _sentence_settings(run, encoder).items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (partial / CARD).write_text(card, encoding="utf-8")
        again = type(encoder).from_pretrained(partial)
        ids, mask = _sample(tokenizer, run.recipe.data.max_length, encoder)
        return _compare(lambda: _states(again, ids, mask), lambda: _states(encoder, ids, mask), again, encoder)


def _states(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return encoder(input_ids=ids, attention_mask=mask).last_hidden_state


def _sentence_settings(run: FinishedRun, encoder: PreTrainedModel) -> dict[str, Any]:
    """Content of the files that sentence-transformers 2 to 6 reads, by their names."""
    pooling = {"first_token": "cls_token", "mean": "mean_tokens"}[run.recipe.model.pooling]
    ways = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    # Otherwise transformers adds a pooler with random weights, and warns of it.
    pooler = "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters
    return {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (path, name) in enumerate(modules)
        ],
        # The tokenizer holds the maximum length.
        "sentence_bert_config.json": {"model_args": {"add_pooling_layer": False}} if pooler else {},
        "1_Pooling/config.json": {
            "word_embedding_dimension": encoder.config.hidden_size,
            **{f"pooling_mode_{way}": way == pooling for way in ways},
        },
    }


def _load_plain_model(run: FinishedRun) -> MultitaskTransformer:
    """The run's model, its settings removed from the encoder's. Raises UserError for an encoder with its own code."""
    model = run.load_model()
    config = model.sentence_transformer.encoder.config
    if has_remote_code(config):
        raise UserError(f"export: {run.folder}: its encoder comes with code of its own, which is not written on")
    delattr(config, SETTINGS)
    return model


def _pooled_classifier(model: MultitaskTransformer, task: str) -> PreTrainedModel:
    """The classifier of `task` as PooledClassifier, whose code is saved with it."""
    sentences = model.sentence_transformer
    names = model.labels[task]
    config = PooledClassifierConfig(
        encoder=sentences.encoder.config.to_diff_dict(),
        pooling=sentences.pooling,
        head_dropout=sentences.dropout.p,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    PooledClassifierConfig.register_for_auto_class()
    PooledClassifier.register_for_auto_class("AutoModelForSequenceClassification")
    classifier: Any = PooledClassifier(config)
    classifier = classifier.to(sentences.encoder.dtype).eval()
    classifier.encoder.load_state_dict(sentences.encoder.state_dict())
    classifier.head.load_state_dict(model.heads[task].state_dict())
    return classifier


def _tokenizer_for(run: FinishedRun, model: MultitaskTransformer) -> PreTrainedTokenizerBase:
    """The run's tokenizer, limited to the inputs that the encoder takes and to the maximum length of training."""
    tokenizer = copy.deepcopy(run.load_tokenizer(model))
    taken = inspect.signature(model.sentence_transformer.encoder.forward).parameters
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
    tokenizer.model_max_length = run.recipe.data.max_length
    tokenizer.padding_side = "right"
    return tokenizer


def _sample(tokenizer: PreTrainedTokenizerBase, max_length: int, encoder: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Random token ids and attention mask [16, tokens] with lengths from 1 to `max_length`, at most 64.

    Of the tokenizer's tokens, those that `encoder` has vectors for.
    """
    special, end = set(tokenizer.all_special_ids), limits_of(encoder).tokens or len(tokenizer)
    known = torch.tensor([index for index in range(min(len(tokenizer), end)) if index not in special])
    longest = min(max_length, 64)
    chosen = torch.randint(len(known), (16, longest), generator=torch.Generator().manual_seed(0))
    lengths = torch.linspace(1, longest, 16).long().unsqueeze(1)
    mask = (torch.arange(longest) < lengths).long()
    return torch.where(mask.bool(), known[chosen], int(cast(int, tokenizer.pad_token_id))), mask


@torch.no_grad()
def _compare(
    exported: Callable[[], Tensor], original: Callable[[], Tensor], exported_model: nn.Module, model: nn.Module
) -> float:
    """The largest absolute difference, in the dtype of the weights. Leaves the models in float64.

    Raises TrainingError where the difference is larger than rounding explains.
    """
    found = []
    for tolerance in (ROUNDING, TOLERANCE):
        expected = original()
        found.append(float((exported() - expected).abs().max()))
        if not found[-1] <= tolerance * max(1.0, float(expected.abs().max())):  # true as well where one is NaN
            raise TrainingError(f"export: what it gives would differ from the run by {found[-1]:.1e}; not written")
        exported_model.double()
        model.double()
    return found[0]
