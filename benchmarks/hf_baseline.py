"""A recipe trained with the HF Trainer, one Trainer per phase; started by `accelerate launch`.

`hf_baseline.py --side SIDE --out FOLDER [--share S] [argument of launch/train.py]...` trains on the same rows, for as
many examples, at the same learning rates, and writes FOLDER/summary.json with the keys that hf_trainer.py reads.
Gradient clipping, weight decay, loss and heads are those of mtl_dist. Optimizer state and learning-rate schedule are
kept from phase to phase.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments, set_seed

from benchmarks import peak_memory
from benchmarks.hf_baseline_model import SharedEncoder, optimizer_of, scheduler_of
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.dataset import DataBundle, prepare
from mtl_dist.data.token_files import NO_LABEL
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.schedule.phases import trainable_units

Example = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """Settings of the HF Trainer."""

    title: str
    batch_size: int | None = None
    """Rows per step; None for the recipe's."""
    padded_to_limit: bool = False
    """Pad every row to `data.max_length`, rather than to the longest of its batch."""
    frozen_in_eval: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keywords of TrainingArguments that differ from the defaults."""


SIDES = {
    "a": Side("as the seed design wrote it: padded to 128 tokens, batches of 8, fp32", 8, padded_to_limit=True),
    "b": Side("at its defaults: padded to the longest of a batch, batches of 8, fp32", 8),
    "c": Side(
        "at its strongest: grouped by length, bf16, mtl_dist's batch size, frozen modules in eval mode, no logging",
        frozen_in_eval=True,
        arguments={
            "bf16": True,
            "train_sampling_strategy": "group_by_length",
            "logging_strategy": "no",
            "logging_nan_inf_filter": False,
        },
    ),
}


class Rows(Dataset[Example]):
    """Examples in memory, the fastest source for a Trainer."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def examples_of(data: DataBundle, split: str) -> list[Example]:
    """The rows of all tasks, in the format of a tokenizer's output."""
    examples = []
    for index, task in enumerate(data.tasks.values()):
        rows = task.examples.splits[split]
        columns: Any = rows.rows[:]
        for ids, label in zip(columns["input_ids"].to_pylist(), rows.labels[task.name].tolist(), strict=True):
            if label == NO_LABEL:
                continue
            examples.append({"input_ids": ids, "attention_mask": [1] * len(ids), "task": index, "labels": label})
    return examples


class Clock(TrainerCallback):
    """Measures time and peak memory of a phase, from the end of the Trainer's preparations to its last update."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0
        self.resident = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        peak_memory.reset()
        self.started = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.started
        self.resident = peak_memory.peak()


class Training:
    """A run that trains one phase after the other."""

    def __init__(self, recipe: Recipe, side: Side, out: Path, share: float, device: str) -> None:
        self.recipe, self.side, self.out, self.share, self.device = recipe, side, out, share, device
        self.data = prepare(recipe, ProcessGroup())
        self.rows = examples_of(self.data, "train")
        self.test = examples_of(self.data, "test")
        set_seed(recipe.seed)
        labels = [len(task.labels) for task in self.data.tasks.values()]
        self.model = SharedEncoder(recipe, labels, side.frozen_in_eval).to(device)
        self.batch_size = side.batch_size or recipe.batch_size
        self.steps = [
            round(math.ceil(len(self.rows) / self.batch_size) * (phase.epochs or 0)) for phase in recipe.phases
        ]
        self.optimizer = optimizer_of(self.model, recipe.optimizer)
        # The same number of warm-up examples for any batch size.
        warmup = math.ceil(recipe.optimizer.warmup_steps * recipe.batch_size / self.batch_size)
        self.scheduler = scheduler_of(self.optimizer, warmup, sum(self.steps))
        padding = "max_length" if side.padded_to_limit else "longest"
        self.collate = DataCollatorWithPadding(self.data.tokenizer, padding, recipe.data.max_length)

    def phase(self, index: int) -> dict[str, Any]:
        """Trains a phase; returns its entry of the summary."""
        self.model.unfreeze(trainable_units(self.recipe, self.model.num_blocks)[index])
        run = math.ceil(self.share * self.steps[index])
        arguments = TrainingArguments(
            output_dir=str(self.out),
            per_device_train_batch_size=self.batch_size,
            max_steps=run,
            max_grad_norm=self.recipe.optimizer.max_grad_norm or 0.0,
            seed=self.recipe.seed + index,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=self.device == "cpu",
            **self.side.arguments,
        )
        clock = Clock()
        trainer = Trainer(
            model=self.model,
            args=arguments,
            train_dataset=Rows(self.rows),
            data_collator=self.collate,
            optimizers=(self.optimizer, self.scheduler),
            callbacks=[clock],
        )
        trainer.train()
        # Or the next phase's Trainer would wrap the forward method for bf16 a second time.
        trainer.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return {
            "name": self.recipe.phases[index].name,
            "seconds": clock.seconds * self.steps[index] / run,
            "steps": self.steps[index],
            "steps_run": run,
            "resident": clock.resident,
        }

    def accuracy(self) -> dict[str, float]:
        """Test accuracy by task."""
        self.model.eval()
        order = sorted(self.test, key=lambda example: len(example["input_ids"]))
        correct: dict[str, list[bool]] = {task: [] for task in self.recipe.tasks}
        collate = DataCollatorWithPadding(self.data.tokenizer)
        size, bf16 = self.recipe.evaluation.batch_size, bool(self.side.arguments.get("bf16"))
        for start in range(0, len(order), size):
            batch: Any = collate(order[start : start + size])
            batch = batch.to(self.device)
            with torch.no_grad(), torch.autocast(self.device, torch.bfloat16, enabled=bf16):
                vectors = self.model.vectors(batch["input_ids"], batch["attention_mask"])
                for index, (task, head) in enumerate(self.model.heads.items()):
                    rows = batch["task"] == index
                    correct[task] += (head(vectors[rows]).argmax(dim=-1) == batch["labels"][rows]).tolist()
        return {f"test/{task}/accuracy": sum(answers) / len(answers) for task, answers in correct.items()}

    def run(self) -> dict[str, Any]:
        """Trains all phases and evaluates after each, as mtl_dist does."""
        lines, accuracy = [], {}
        for index in range(len(self.recipe.phases)):
            lines.append(self.phase(index))
            accuracy = self.accuracy()
        torch.save(self.model.state_dict(), self.out / "model.pt")
        return {"phases": lines, **accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a recipe with the HF Trainer.")
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument("--gpu", action="store_true", help="run on the GPU")
    parser.add_argument("--share", type=float, default=1.0, help="share of each phase's steps to run (%(default)s)")
    options, arguments = parser.parse_known_args()
    options.out.mkdir()
    device = "cuda" if options.gpu else "cpu"
    summary = Training(parse(arguments).recipe, SIDES[options.side], options.out, options.share, device).run()
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
