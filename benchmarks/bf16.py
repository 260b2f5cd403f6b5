"""Differences between the quickstart's losses in bf16 and in float32 after 100 steps, on every engine.

`python -m benchmarks.bf16 [key=value]...` trains without dropout for 30 + 30 + 40 steps: in float32 on one process, and
in bf16 with each file of accelerate_configs below, on CPUs. Prints each run's mean loss over its last ten steps, its
difference from float32's, and whether all ranks ended with the same parameters.
"""

import json
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from tests.distributed.launching import launched

FILES = {"cpu.yaml": 1, "multi_cpu.yaml": 2, "fsdp2.yaml": 2, "zero1.yaml": 2, "zero2.yaml": 2, "zero3.yaml": 2}
"""Files of accelerate_configs, and the number of processes for each."""
SETTINGS = ("model.dropout=0", "model.encoder_dropout=0", "tracking.log_every_steps=1")
STEPS = tuple(f"phases.{i}.{key}" for i, n in enumerate((30, 30, 40)) for key in ("epochs=null", f"steps={n}"))


def train(folder: Path, file: str, precision: str, overrides: list[str]) -> tuple[float, dict[str, Any]]:
    """Trains once; returns the mean loss of the last ten steps, and the summary."""
    recipe = ("--config", "recipes/quickstart.yaml", f"output_dir={folder}", *SETTINGS, *STEPS, *overrides)
    flags = ("--mixed_precision", precision, "--main_process_port", "0")
    on_cpu = not file.endswith("cpu.yaml")
    launched("launch/train.py", *recipe, processes=FILES[file], config=file, on_cpu=on_cpu, flags=flags)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    return mean(losses[-10:]), json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        exact, _ = train(Path(scratch) / "fp32", "cpu.yaml", "no", sys.argv[1:])
        print(f"{'cpu.yaml, float32':<22}loss {exact:.4f}", flush=True)
        for file, processes in FILES.items():
            loss, summary = train(Path(scratch) / file, file, "bf16", sys.argv[1:])
            ranks = len(set(summary["params_sha256_by_rank"]))
            equal = "" if processes == 1 else f", ranks {'equal' if ranks == 1 else 'DIFFERENT'}"
            print(f"{f'{file}, bf16':<22}loss {loss:.4f} ({loss / exact - 1:+.2%}){equal}", flush=True)


if __name__ == "__main__":
    main()
