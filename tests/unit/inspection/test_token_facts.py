"""Lengths before truncation and unknown characters, compared with a plain pass over all texts."""

import csv
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mtl_dist.config.load import parse
from mtl_dist.config.sources import example_sets
from mtl_dist.data.dataset import DataBundle, prepare
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.inspection import token_facts as module
from mtl_dist.inspection.token_facts import LengthFigures, UnknownFigures, token_facts
from tests.utils.tiny import SPECIAL, WORDS, tiny_encoder


def figures(
    folder: Path, rows: list[dict[str, str]], text: str, max_length: int
) -> tuple[LengthFigures, UnknownFigures, DataBundle]:
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "r.yaml").write_text(
        f"sources:\n  s: {{path: csv, data_files: {folder}/t.csv, text: {text}, split: {{test: 0.3}}}}\n"
        f"tasks:\n  a: {{source: s, label: a}}\n  b: {{source: s, label: b}}\n"
        f"model: {{encoder: {folder}/encoder}}\ndata: {{max_length: {max_length}, cache_dir: {folder}/cache}}\n"
    )
    recipe = parse(["--config", str(folder / "r.yaml")]).recipe
    data = prepare(recipe, ProcessGroup())
    (config,) = example_sets(recipe)
    return *token_facts(config, data.sets[0].splits, data.tokenizer, max_length), data


def rows_of(source: random.Random, count: int = 120) -> list[dict[str, str]]:
    strange = ("Zoë", "naïve", "日本", "\N{GRINNING FACE}", "e\u0301")
    made = []
    for number in range(count):
        words = [source.choice(WORDS) for _ in range(source.randint(1, 14))]
        words += [source.choice(strange)] * (source.random() < 0.2)
        source.shuffle(words)
        labels = {"a": source.choice(["x", "y", ""]), "b": source.choice(["1", "2", ""])}
        if not any(labels.values()):
            labels["a"] = "x"
        second = " ".join(source.choice(WORDS) for _ in range(source.randint(1, 5)))
        made.append(
            {"text": f"{' '.join(words)} {WORDS[number % 50]} {WORDS[number // 50]}", "second": second, **labels}
        )
    return made


@pytest.mark.parametrize("text", ["text", "[text, second]"])
@pytest.mark.parametrize("max_length", [6, 14, 40])
def test_figures_are_those_of_all_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, max_length: int
) -> None:
    monkeypatch.setattr(module, "_BATCH", 7)
    tiny_encoder(tmp_path / "encoder")
    rows = rows_of(random.Random(max_length))
    lengths, unknown, data = figures(tmp_path, rows, text, max_length)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "encoder")
    columns = ["text", "second"] if "second" in text else ["text"]
    tokens = [len(tokenizer(*(row[name] for name in columns))["input_ids"]) for row in rows]
    tokens.sort()
    assert lengths == LengthFigures(
        tokens[(len(tokens) - 1) // 2],
        int(np.percentile(tokens, 95, method="inverted_cdf")),
        tokens[-1],
        len(tokens),
        sum(count > max_length for count in tokens),
    )
    known = set(WORDS)
    strange = [[word for word in row["text"].split() if word not in known] for row in rows]
    assert unknown.rows == sum(map(bool, strange)) > 0
    assert unknown.characters == Counter(character for words in strange for word in words for character in word)
    assert not unknown.words
    assert {len(split.lengths) for split in data.sets[0].splits.values()} != {0}


def test_a_word_of_known_characters_can_be_unknown(tmp_path: Path) -> None:
    tiny_encoder(tmp_path / "encoder")
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, "a", "b", "x", "##x"])}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = BertPreTokenizer()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(tmp_path / "encoder")
    texts = [f"a {'x' * (number + 1)}" for number in range(40)]
    texts[::8] = ["ab x"] * 5  # the unknown token is the first of its row
    texts[1:3] = ["a ab ac", "ü axü x"]
    rows = [{"text": text, "a": "pq"[index % 2], "b": "pq"[index % 2]} for index, text in enumerate(texts)]
    _, unknown, _ = figures(tmp_path, rows, "text", 8)
    assert unknown.words == {"ab": 6}
    assert unknown.characters == {"c": 1, "ü": 2}
    assert unknown.rows == 7
