"""Attention without dropout, forward and backward on the CPU: torch's fused kernel against separate operations.

`python -m benchmarks.attention [--rounds N] [--threads N]` prints, for each type and number of tokens, the seconds of
the fused kernel over those of matmul, softmax and matmul, as median (minimum to maximum), for 32 texts and 12 heads of
size 32. mtl_dist uses the separate operations where they are faster (`mtl_dist.models.attention.MAX_UNFUSED_TOKENS`).
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.training_runs import make_parser, spread

TOKENS = (16, 32, 64, 128, 256, 512)
TEXTS, HEADS, SIZE = 32, 12, 32
SECONDS = 0.3
"""Time for which each is repeated."""


def separate_operations(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Masked attention as matmul, softmax and matmul."""
    scores = torch.matmul(query, key.transpose(-2, -1)) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    return torch.matmul(torch.softmax(scores, dim=-1), value)


def seconds_of(way: Callable[..., Tensor], inputs: Sequence[Tensor], visible: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    way(*inputs, visible).sum().backward()
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        way(*inputs, visible).sum().backward()
        times += 1
    return (time.perf_counter() - began) / times


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser(str(__doc__)).parse_args(arguments)
    torch.set_num_threads(options.threads)
    for dtype in (torch.bfloat16, torch.float32):
        for tokens in TOKENS[:1] if options.quick else TOKENS:
            inputs = [torch.randn(TEXTS, HEADS, tokens, SIZE, dtype=dtype, requires_grad=True) for _ in range(3)]
            visible = torch.ones(TEXTS, 1, tokens, tokens, dtype=torch.bool)
            visible[TEXTS // 2 :, :, :, -3:] = False
            ratios = []
            for _ in range(options.rounds):
                ways = (scaled_dot_product_attention, separate_operations)
                fused, separate = (seconds_of(way, inputs, visible) for way in ways)
                ratios.append(fused / separate)
            print(f"{str(dtype).removeprefix('torch.')}, {tokens} tokens: {spread(ratios)}", flush=True)


if __name__ == "__main__":
    main()
