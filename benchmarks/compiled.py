"""Whether `torch.compile` pays on this machine: steps of the quickstart's encoder, eager and compiled, in turn.

`python -m benchmarks.compiled [--rounds N] [--threads N]` compiles every block for any length (`dynamic=True`), as a
recipe key would, and trains everything in bf16 on batches of 32 texts of unlike lengths, without dropout. Printed are
the seconds that compiling takes, eager over compiled time of a step as median (least to greatest), and after how many
steps compiling would have paid for itself.
"""

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import nn
from transformers import AutoModel

from benchmarks.runs import parser_of, spread
from mtl_dist.config.load import parse

LENGTHS = (20, 25, 31, 18, 22, 28, 17, 30, 24)
"""Tokens of the batches of a round."""
BATCH = 32


def made(encoder: str, compiled: bool, device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model: nn.Module = AutoModel.from_pretrained(encoder, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    model.to(device).train()
    if compiled:
        for block in model.get_submodule("encoder.layer").children():
            block.compile(dynamic=True)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def seconds_of(model: nn.Module, optimizer: torch.optim.Optimizer, lengths: Sequence[int]) -> float:
    """Of a step for each of `lengths`."""
    device = next(model.parameters()).device
    began = time.perf_counter()
    for length in lengths:
        tokens = torch.randint(1000, 20000, (BATCH, length)).to(device)
        mask = torch.ones_like(tokens)
        mask[BATCH // 2 :, -2:] = 0
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser_of(str(__doc__), rounds=5).parse_intermixed_args(arguments)
    torch.set_num_threads(options.threads)
    encoder = parse(["--config", "recipes/quickstart.yaml", *options.overrides]).recipe.model.encoder
    device = "cuda" if options.gpu else "cpu"
    eager, compiled = made(encoder, compiled=False, device=device), made(encoder, compiled=True, device=device)
    seconds_of(*eager, LENGTHS[:3])
    first = seconds_of(*compiled, LENGTHS[:3])
    times = [(seconds_of(*eager, LENGTHS), seconds_of(*compiled, LENGTHS)) for _ in range(options.rounds)]
    each = median(mine for _, mine in times) / len(LENGTHS)
    print(f"compiling takes {first - 3 * each:.0f} seconds")
    print(f"a step, eager over compiled: {spread([other / mine for other, mine in times], '.2f')}")
    gain = median(other - mine for other, mine in times) / len(LENGTHS)
    print(f"pays after {(first - 3 * each) / gain:.0f} steps" if gain > 0 else "never pays")


if __name__ == "__main__":
    main()
