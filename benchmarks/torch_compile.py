"""Step time of the quickstart's encoder, eager over `torch.compile`.

`python -m benchmarks.torch_compile [--gpu] [--rounds N] [--threads N]` compiles every block for any length
(`dynamic=True`), as a recipe key would, and trains everything in bf16 on batches of 32 texts of different lengths,
without dropout. Printed are the seconds that compilation takes, the ratio of eager to compiled step time as median
(minimum to maximum), and the number of steps after which compilation pays for itself.
"""

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import nn
from transformers import AutoModel

from benchmarks.training_runs import make_parser, recipe_overrides, spread
from mtl_dist.config.load import parse

LENGTHS = (20, 25, 31, 18, 22, 28, 17, 30, 24)
"""Tokens per row of the batches of a round."""
BATCH = 32


def make_model(encoder: str, compiled: bool, device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The encoder in `encoder` without dropout, and its optimizer."""
    model: nn.Module = AutoModel.from_pretrained(encoder, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    model.to(device).train()
    if compiled:
        for block in model.get_submodule("encoder.layer").children():
            block.compile(dynamic=True)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def seconds_of(model: nn.Module, optimizer: torch.optim.Optimizer, lengths: Sequence[int]) -> float:
    """Seconds of one training step per entry of `lengths`."""
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
    options = make_parser(str(__doc__), rounds=5).parse_intermixed_args(arguments)
    torch.set_num_threads(options.threads)
    encoder = parse(["--config", "recipes/quickstart.yaml", *recipe_overrides(options)]).recipe.model.encoder
    device = "cuda" if options.gpu else "cpu"
    eager, compiled = (make_model(encoder, compiled, device) for compiled in (False, True))
    seconds_of(*eager, LENGTHS[:3])
    first = seconds_of(*compiled, LENGTHS[:3])
    times = [(seconds_of(*eager, LENGTHS), seconds_of(*compiled, LENGTHS)) for _ in range(options.rounds)]
    each = median(mine for _, mine in times) / len(LENGTHS)
    print(f"compilation takes {first - 3 * each:.0f} seconds")
    print(f"step time, eager over compiled: {spread([other / mine for other, mine in times], '.2f')}")
    gain = median(other - mine for other, mine in times) / len(LENGTHS)
    print(f"pays after {(first - 3 * each) / gain:.0f} steps" if gain > 0 else "never pays")


if __name__ == "__main__":
    main()
