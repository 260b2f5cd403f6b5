"""Tiny random encoders, task files and recipes, generated for tests, which need no downloads."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe

SPECIAL = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"{theme}{number}" for theme in ("cat", "sea", "law", "art", "good", "bad", "so") for number in range(8))
TOPICS = ("cat", "sea", "law", "art")
"""Classes of the task `topic`; the words of a text belong to its class."""
MOODS = ("bad", "so", "good")
"""Classes of the task `mood`, stored as integers 0 to 2 in its files."""
UNUSED = 7
"""Rows of an encoder's token embedding that no text uses."""
KINDS = ("bert", "roberta", "xlm-roberta", "distilbert", "deberta", "deberta-v2", "mpnet", "electra", "modernbert")


def tiny_config(kind: str, layers: int = 4, hidden: int = 16, positions: int = 40) -> dict[str, Any]:
    """Configuration of a small encoder of model type `kind`, with the default dropout of that type."""
    common = {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 1}
    if kind == "distilbert":
        return common | {
            "dim": hidden,
            "n_layers": layers,
            "n_heads": 2,
            "hidden_dim": 2 * hidden,
            "max_position_embeddings": positions,
        }
    sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": positions,
    }
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": -1}
    special: dict[str, dict[str, Any]] = {
        "deberta": relative,
        "deberta-v2": relative | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
        "electra": {"embedding_size": hidden // 2},
        "modernbert": {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3},
    }
    return common | sizes | special.get(kind, {})


def tiny_encoder(
    folder: Path,
    kind: str = "bert",
    layers: int = 4,
    hidden: int = 16,
    seed: int = 0,
    positions: int = 40,
    **settings: Any,
) -> Path:
    """Saves a randomly initialized encoder with a word-level tokenizer into `folder`; returns the folder.

    `settings` replace those of `tiny_config`.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **tiny_config(kind, layers, hidden, positions) | settings)
    encoder = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            # Default initialization hardly distinguishes texts: matrices are near zero, and biases are zero.
            parameter.add_(0.1 * torch.randn_like(parameter))
        table = encoder.get_input_embeddings().weight
        rows = torch.cat([table, torch.randn(UNUSED, table.shape[1])])
        encoder.resize_token_embeddings(len(rows), mean_resizing=False).weight.copy_(rows)
    encoder.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer whose vocabulary is WORDS; sentence pairs get token types."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = BertPreTokenizer()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def add_word_beyond_table(folder: Path, word: str) -> int:
    """Adds `word` to the tokenizer in `folder`, as the first token that the encoder has no vector for; returns its ID.

    Other words are added before it, which the encoder has vectors for.
    """
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([*(f"more{index}" for index in range(UNUSED)), word])
    tokenizer.save_pretrained(folder)
    return len(tokenizer) - 1


def tiny_task_files(folder: Path, rows: int = 48, seed: int = 0) -> None:
    """Writes {topic,mood}.{train,validation,test}.json: `rows` training rows, a quarter of it in the other splits.

    No text occurs twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(seed)
    for task, classes in (("topic", TOPICS), ("mood", MOODS)):
        number = 0
        for split, count in (("train", rows), ("validation", rows // 4), ("test", rows // 4)):
            lines = []
            for row in range(count):
                label = row % len(classes)
                words = [f"{classes[label]}{source.randrange(8)}" for _ in range(source.randint(1, 12))]
                # The row number, spelled in words that say nothing about the class, makes texts unique.
                words += [f"{'cat' if task == 'mood' else 'so'}{digit}" for digit in oct(number)[2:]]
                lines.append({"text": " ".join(words), "label": classes[label] if task == "topic" else label})
                number += 1
            path = folder / f"{task}.{split}.json"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def tiny_recipe_file(folder: Path, rows: int = 48, layers: int = 4) -> Path:
    """Writes a recipe with encoder and task files into `folder`: three phases of 4 steps, no dropout."""
    tiny_encoder(folder / "encoder", layers=layers)
    tiny_task_files(folder / "data", rows)
    tasks = {
        task: {
            "path": "json",
            "data_files": {
                split: str(folder / "data" / f"{task}.{split}.json") for split in ("train", "validation", "test")
            },
        }
        for task in ("topic", "mood")
    }
    recipe = {
        "output_dir": str(folder / "run"),
        "batch_size": 12,
        "model": {"encoder": str(folder / "encoder"), "dropout": 0.0, "encoder_dropout": 0.0},
        "tasks": tasks,
        "data": {"max_length": 32},
        "phases": [
            {"name": "heads", "train": ["heads"], "steps": 4},
            {"name": "upper", "train": ["heads", "blocks[-2:]"], "steps": 4},
            {"name": "all", "train": ["all"], "steps": 4},
        ],
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "tracking": {"log_every_steps": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")  # JSON is YAML
    return path


def tiny_recipe(folder: Path, *overrides: str, rows: int = 48, layers: int = 4) -> Recipe:
    """Parses the recipe of `tiny_recipe_file` with dotted overrides, e.g. `model.dtype=float64`."""
    return parse(["--config", str(tiny_recipe_file(folder, rows, layers)), *overrides]).recipe
