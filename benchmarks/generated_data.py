"""A stand-in for the quickstart's encoder and data, made on the spot, for machines without them and without network.

The encoder is a BERT with random weights, a vocabulary of as many tokens as all-MiniLM-L6-v2 and a word-level
tokenizer. Texts have as many tokens as the quickstart's, and words that tell the classes apart. Speed and memory are
those of the real encoder of that size; accuracies are not.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SIZES = {"tiny": (6, 32, 2), "MiniLM": (6, 384, 12), "BERT-base": (12, 768, 12)}
"""Blocks, hidden size and attention heads of each encoder."""
VOCABULARY = 30522
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
USED_WORDS = 11_800
"""Words that occur in the texts, as in the quickstart's."""
LENGTHS = (3.02, 0.48)
"""Mean and standard deviation of the logarithm of the tokens of a text."""
LONGEST = 80
ROWS = {"train": 6000, "test": 600}
CLASSES = {"domain": ("tweets", "movie", "amazon", "nyt"), "sentiment": ("negative", "neutral", "positive")}
WORDS_PER_CLASS = 100


def make_quickstart(size: str, root: Path = Path("build/benchmarks")) -> list[str]:
    """Overrides that replace the quickstart's encoder and data by generated ones below `root`, made if missing.

    `size`: a key of SIZES.
    """
    folder = (root / size).absolute()
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_encoder(folder / "encoder", size)
        for seed, split in enumerate(ROWS):
            pq.write_table(_texts(ROWS[split], seed), folder / f"{split}.parquet")
        (folder / "done").touch()
    files = [f"tasks.{task}.data_files.{split}={folder}/{split}.parquet" for task in CLASSES for split in ROWS]
    return [f"model.encoder={folder}/encoder", *files]


def _write_encoder(folder: Path, size: str) -> None:
    blocks, hidden, heads = SIZES[size]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=blocks,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    words = [f"w{number}" for number in range(VOCABULARY - len(SPECIAL))]
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    ends = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names).save_pretrained(folder)


def _texts(rows: int, seed: int) -> pa.Table:
    """Texts with a label for each task; two words of each text are typical of its classes."""
    source = np.random.default_rng(seed)
    labels = {task: source.integers(len(classes), size=rows) for task, classes in CLASSES.items()}
    lengths = source.lognormal(*LENGTHS, size=rows).clip(5, LONGEST).astype(int) - 2  # [CLS] and [SEP]
    texts = []
    for row, length in enumerate(lengths):
        typical = [
            (10 * task + labels[name][row]) * WORDS_PER_CLASS + source.integers(WORDS_PER_CLASS)
            for task, name in enumerate(CLASSES)
        ]
        others = source.integers(20 * WORDS_PER_CLASS, USED_WORDS, size=length - len(typical))
        texts.append(" ".join(f"w{word}" for word in (*typical, *others)))
    named = {task: pa.array(CLASSES[task]).take(pa.array(of_task)) for task, of_task in labels.items()}
    return pa.table({"text": texts, **named})
