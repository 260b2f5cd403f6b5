"""Attention without dropout, forward and backward on the CPU: torch's fused kernel against the product of its parts.

`python -m benchmarks.attention [--rounds N] [--threads N]` prints, for each type and number of tokens, the seconds of
the kernel over those of the parts, as median (least to greatest), 32 texts and 12 heads of 32. The harness goes by the
parts where they are faster (`mtl_dist.models.attention.MAX_UNFUSED_TOKENS`).
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.runs import parser_of, spread

TOKENS = (16, 32, 64, 128, 256, 512)
TEXTS, HEADS, SIZE = 32, 12, 32
SECONDS = 0.3
"""For which each is repeated."""


def by_parts(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    scores = torch.matmul(query, key.transpose(-2, -1)) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    return torch.matmul(torch.softmax(scores, dim=-1), value)


def seconds_of(way: Callable[..., Tensor], inputs: Sequence[Tensor], visible: Tensor) -> float:
    """Of one forward and backward."""
    way(*inputs, visible).sum().backward()
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        way(*inputs, visible).sum().backward()
        times += 1
    return (time.perf_counter() - began) / times


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser_of(str(__doc__)).parse_args(arguments)
    torch.set_num_threads(options.threads)
    for dtype in (torch.bfloat16, torch.float32):
        for tokens in TOKENS[:1] if options.quick else TOKENS:
            inputs = [torch.randn(TEXTS, HEADS, tokens, SIZE, dtype=dtype, requires_grad=True) for _ in range(3)]
            visible = torch.ones(TEXTS, 1, tokens, tokens, dtype=torch.bool)
            visible[TEXTS // 2 :, :, :, -3:] = False
            ratios = []
            for _ in range(options.rounds):
                fused, parts = (seconds_of(way, inputs, visible) for way in (scaled_dot_product_attention, by_parts))
                ratios.append(fused / parts)
            print(f"{str(dtype).removeprefix('torch.')}, {tokens} tokens: {spread(ratios)}", flush=True)


if __name__ == "__main__":
    main()
