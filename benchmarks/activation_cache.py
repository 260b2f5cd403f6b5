"""Time to write and to read cached hidden states of a batch, relative to computing them (bf16, random weights).

`python -m benchmarks.activation_cache [--gpu] [--rounds N] [--threads N]` prints, for each encoder, number of texts and
number of tokens, the seconds of writing and of reading over those of the encoder's blocks below the top two, as median
(minimum to maximum). A read ends when the device has the states. `cache.mode=auto` is based this
(`mtl_dist.activation_cache.policy.GPU_MAX_FORWARD_BYTES`).
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from benchmarks.training_runs import make_parser, spread
from mtl_dist.activation_cache.groups import ComputeGroups, DistinctTexts
from mtl_dist.activation_cache.policy import CacheAllocation, Span
from mtl_dist.activation_cache.store import ActivationStore
from mtl_dist.device import to_device
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.models.frozen_linear import cache_frozen_casts
from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer
from mtl_dist.schedule.sampler import GlobalBatch

ENCODERS = {"MiniLM": (6, 384), "BERT-base": (12, 768), "BERT-large": (24, 1024)}
"""Number of blocks and hidden size."""
HEAD = 64
"""Size of an attention head."""
SHAPES = tuple((texts, tokens) for texts in (8, 32, 256) for tokens in (32, 128))
ON_CPU = 2
"""Number of encoders, and of shapes of each, that are measured on a CPU."""
REPEATS = 3


def model_of(blocks: int, hidden: int, device: torch.device) -> MultitaskTransformer:
    """A frozen model, prepared as in a run."""
    config = BertConfig(
        num_hidden_layers=blocks,
        hidden_size=hidden,
        num_attention_heads=hidden // HEAD,
        intermediate_size=4 * hidden,
    )
    sentences = SentenceTransformer(BertModel(config, add_pooling_layer=False))
    model = MultitaskTransformer(sentences, {"task": ("a", "b")}).to(device).eval().requires_grad_(False)
    cache_frozen_casts(model)
    return model


def store_for(texts: int, tokens: int, hidden: int) -> ActivationStore:
    """A store with slots for the states of one batch."""
    lengths = np.full(texts, tokens)
    hashes = np.stack([np.arange(texts, dtype=np.uint64)] * 2, axis=1)
    compute_groups = ComputeGroups(DistinctTexts([hashes], [lengths], [0]), range(1), 0)
    batch = GlobalBatch(0, np.zeros(texts, dtype=np.int64), np.arange(texts), lengths, np.array([texts]))
    compute_groups.add_step(batch, [[np.arange(texts)]])
    bytes_of = 2 * texts * tokens * hidden
    store = ActivationStore(
        CacheAllocation(Span(1, 0, 0, (0,)), bytes_of),
        compute_groups,
        lengths * hidden,
        torch.bfloat16,
        ProcessGroup(),
        None,
    )
    store.next_step()
    return store


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of REPEATS calls."""
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def ratios(
    model: MultitaskTransformer, texts: int, tokens: int, rounds: int, device: torch.device
) -> list[list[float]]:
    """Seconds of writing and of reading over those of computing, by round."""
    ids = torch.randint(1, 1000, (texts, tokens), device=device)
    depth = model.layout.num_blocks - 2
    hidden = model.sentence_transformer.encoder.config.hidden_size
    store, numbers = store_for(texts, tokens, hidden), np.random.default_rng(0).permutation(texts)

    def compute() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return model.run_prefix([depth], ids, torch.ones_like(ids))[depth].to(torch.bfloat16)

    states = compute()
    ways = (
        compute,
        lambda: store.write(numbers, states),
        lambda: to_device(store.read(numbers, (tokens, hidden)), device),
    )
    found = []
    for _ in range(rounds + 1):
        computing, *others = (seconds_of(way, device) for way in ways)
        found.append([other / computing for other in others])
    return found[1:]  # the first round is a warm-up


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser(str(__doc__)).parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if options.gpu else "cpu")
    every = 1 if options.quick else None if options.gpu else ON_CPU
    for name, (blocks, hidden) in list(ENCODERS.items())[:every]:
        model = model_of(blocks, hidden, device)
        for texts, tokens in SHAPES[:every]:
            writing, reading = zip(*ratios(model, texts, tokens, options.rounds, device), strict=True)
            label = f"{name}, {texts} texts of {tokens} tokens"
            print(f"{label}: writing {spread(writing, '.3f')}, reading {spread(reading, '.3f')}", flush=True)


if __name__ == "__main__":
    main()
