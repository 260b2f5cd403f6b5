"""`export`: one task of a run as a folder for `transformers.pipeline`, or its encoder for sentence-transformers."""

import copy
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtl_dist.errors import TrainingError, UserError
from mtl_dist.inference.finished_run import CommandParser, FinishedRun, open_run
from mtl_dist.inference.pooled_classifier import PooledClassifier, PooledClassifierConfig
from mtl_dist.inference.sequence_classification import stock_classifier
from mtl_dist.io import atomic_folder
from mtl_dist.models.encoder import has_remote_code, quiet_transformers
from mtl_dist.models.model_card import CARD, model_card
from mtl_dist.models.multitask import SETTINGS, MultitaskTransformer

TOLERANCE, ROUNDING = 1e-6, 1e-5
"""How far an exported folder's values may be from the run's own, as a part of the largest or of 1: computed in float64,
and in the type of the weights, whose rounding alone moves logits by 2e-6 between batches of one text and of many."""
_PIPELINE = """\
```python
from transformers import pipeline

classify = pipeline("text-classification", FOLDER{trust})
classify("some text", truncation=True)
```
"""
_STOCK_NOTE = """
The classes are those of transformers. The head is Linear, ReLU, Linear, written into what the stock class has, so
that some weights are very large or small and there may be one more block than the encoder has: for inference in
float32 or bfloat16, not in float16, and not for further training."""
_CODE_NOTE = """
The folder brings `exported_classifier.py`, which `trust_remote_code=True` allows to run; read it first, it is short."""
_EMBEDDINGS = """\
```python
from sentence_transformers import SentenceTransformer

SentenceTransformer(FOLDER).encode(["some text"])
```
"""


def main(arguments: Sequence[str]) -> None:
    """Carries `export` out. Raises UserError and TrainingError."""
    parser = CommandParser("export", "Writes a folder that loads without mtl_dist.")
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder to write; new or empty")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", help='task whose classifier `transformers.pipeline("text-classification", DIR)` loads')
    what.add_argument(
        "--sentence-transformers", action="store_true", help="the encoder, as sentence-transformers has it"
    )
    parser.add_argument("--with-code", action="store_true", help="a class of its own, for encoders no stock class fits")
    options = parser.parse_args(arguments)
    if options.with_code and options.sentence_transformers:
        raise UserError("--with-code: goes with --task; sentence-transformers needs no code of ours")
    run = open_run(options.run)
    if options.folder.exists() and (not options.folder.is_dir() or any(options.folder.iterdir())):
        raise UserError(f"{options.folder} is there already; name a new folder")
    if options.sentence_transformers:
        difference = export_encoder(run, options.folder)
    else:
        run.check_task(options.task)
        difference = export_classifier(run, options.task, options.folder, options.with_code)
    print(f"{options.folder} is written; loaded again, it differs from the run by at most {difference:.1e}")


def export_classifier(run: FinishedRun, task: str, folder: Path, with_code: bool = False) -> float:
    """Writes the classifier of `task`; returns by how much its logits differ, measured on what is written.

    Raises UserError where the encoder's stock class cannot hold it and `with_code` is not set.
    """
    model = _without_settings(run)
    classifier = _with_code(model, task) if with_code else stock_classifier(model, task)
    tokenizer = _tokenizer_for(run, model)
    trust, note = (", trust_remote_code=True", _CODE_NOTE) if with_code else ("", _STOCK_NOTE)
    usage = _PIPELINE.format(trust=trust) + note
    with atomic_folder(folder) as partial, quiet_transformers():
        classifier.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        labels = {task: model.labels[task]}
        card = model_card(run.recipe, labels, run.summary, "transformers", "text-classification", usage)
        (partial / CARD).write_text(card, encoding="utf-8")
        again: Any = type(classifier).from_pretrained(partial)
        ids, mask = _sample(tokenizer, run.recipe.data.max_length)
        return _compare(
            lambda: again(input_ids=ids, attention_mask=mask).logits, lambda: model(ids, mask, task), again, model
        )


def export_encoder(run: FinishedRun, folder: Path) -> float:
    """Writes the encoder for sentence-transformers; returns by how much its states differ, as written."""
    model = _without_settings(run)
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
        ids, mask = _sample(tokenizer, run.recipe.data.max_length)
        return _compare(lambda: _states(again, ids, mask), lambda: _states(encoder, ids, mask), again, encoder)


def _states(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return encoder(input_ids=ids, attention_mask=mask).last_hidden_state


def _sentence_settings(run: FinishedRun, encoder: PreTrainedModel) -> dict[str, Any]:
    """The files that sentence-transformers reads, in the form that its versions from 2 to 6 understand."""
    pooling = {"first_token": "cls_token", "mean": "mean_tokens"}[run.recipe.model.pooling]
    ways = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    # Else transformers makes a pooler of random weights, and says so.
    pooler = "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters
    return {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (path, name) in enumerate(modules)
        ],
        # The tokenizer says how many tokens are kept.
        "sentence_bert_config.json": {"model_args": {"add_pooling_layer": False}} if pooler else {},
        "1_Pooling/config.json": {
            "word_embedding_dimension": encoder.config.hidden_size,
            **{f"pooling_mode_{way}": way == pooling for way in ways},
        },
    }


def _without_settings(run: FinishedRun) -> MultitaskTransformer:
    """The run's model, with its settings out of the encoder's. Raises UserError for an encoder that is code itself."""
    model = run.load_model()
    config = model.sentence_transformer.encoder.config
    if has_remote_code(config):
        raise UserError(f"export: {run.folder}: its encoder comes with code of its own, which is not written on")
    delattr(config, SETTINGS)
    return model


def _with_code(model: MultitaskTransformer, task: str) -> PreTrainedModel:
    """The classifier of `task` as a class whose code is saved with it."""
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
    """The run's tokenizer, which gives what the encoder takes, and no more tokens than in training."""
    tokenizer = copy.deepcopy(run.load_tokenizer())
    taken = inspect.signature(model.sentence_transformer.encoder.forward).parameters
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
    tokenizer.model_max_length = run.recipe.data.max_length
    tokenizer.padding_side = "right"
    return tokenizer


def _sample(tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [16, tokens] of made-up texts of all lengths."""
    special = set(tokenizer.all_special_ids)
    known = torch.tensor([index for index in range(len(tokenizer)) if index not in special])
    longest = min(max_length, 64)
    chosen = torch.randint(len(known), (16, longest), generator=torch.Generator().manual_seed(0))
    lengths = torch.linspace(1, longest, 16).long().unsqueeze(1)
    mask = (torch.arange(longest) < lengths).long()
    return torch.where(mask.bool(), known[chosen], int(cast(int, tokenizer.pad_token_id))), mask


@torch.no_grad()
def _compare(
    theirs: Callable[[], Tensor], ours: Callable[[], Tensor], their_model: nn.Module, our_model: nn.Module
) -> float:
    """The largest difference. Raises TrainingError where it is beyond rounding. Leaves the models in float64."""
    found = []
    for most in (ROUNDING, TOLERANCE):
        wanted = ours()
        found.append(float((theirs() - wanted).abs().max()))
        if not found[-1] <= most * max(1.0, float(wanted.abs().max())):  # as it is where either is not a number
            raise TrainingError(f"export: what it gives would differ from the run by {found[-1]:.1e}; not written")
        their_model.double()
        our_model.double()
    return found[0]
