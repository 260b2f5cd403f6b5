"""Under `accelerate launch`: a recipe's run with the HF Trainer, one Trainer a phase.

`rival.py --side SIDE --out FOLDER [--share S] [argument of launch/train.py]...` trains on the same rows, for as many
examples, at the same rates, and leaves FOLDER/summary.json with the keys that hf_trainer.py reads. Clipping, decay,
loss and heads are those of the harness. Moments live through the run; so does the schedule of rates.
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

from benchmarks import resident
from benchmarks.rival_model import SharedEncoder, optimizer_of, scheduler_of
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.dataset import DataBundle, prepare
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.schedule.phases import trainable_units

Example = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One way to set the HF Trainer up."""

    title: str
    batch_size: int | None = None
    """None: the recipe's."""
    padded_to_limit: bool = False
    """Every row padded to `data.max_length`, else to the longest of its batch."""
    frozen_in_eval: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of TrainingArguments, besides the defaults."""


SIDES = {
    "a": Side("as the seed design wrote it: padded to 128 tokens, batches of 8, fp32", 8, padded_to_limit=True),
    "b": Side("at its defaults: padded to the longest of a batch, batches of 8, fp32", 8),
    "c": Side(
        "at its strongest: grouped by length, bf16, the harness's batch, frozen modules in eval mode, no logging",
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
    """Examples in memory, which is the fastest that a Trainer can read."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def examples_of(data: DataBundle, split: str) -> list[Example]:
    """The rows of all tasks, as tokenizers and collators have them."""
    examples = []
    for index, task in enumerate(data.tasks.values()):
        columns: Any = task.splits[split].rows[:]
        for ids, label in zip(columns["input_ids"].to_pylist(), columns["label"].to_pylist(), strict=True):
            examples.append({"input_ids": ids, "attention_mask": [1] * len(ids), "task": index, "labels": label})
    return examples


class Clock(TrainerCallback):
    """Takes the time of the steps, from after a Trainer's preparations to its last update, and their memory."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0
        self.resident = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        resident.reset()
        self.started = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.started
        self.resident = resident.peak()


class Training:
    """A run, phase by phase."""

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
        # As many examples of warm-up, whatever the batch.
        warmup = math.ceil(recipe.optimizer.warmup_steps * recipe.batch_size / self.batch_size)
        self.scheduler = scheduler_of(self.optimizer, warmup, sum(self.steps))
        padding = "max_length" if side.padded_to_limit else "longest"
        self.collate = DataCollatorWithPadding(self.data.tokenizer, padding, recipe.data.max_length)

    def phase(self, index: int) -> dict[str, Any]:
        """Trains a phase; returns its line of the summary."""
        self.model.thaw(trainable_units(self.recipe, self.model.num_blocks)[index])
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
        # Else the next phase's Trainer would wrap the forward for bf16 once more.
        trainer.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return {
            "name": self.recipe.phases[index].name,
            "seconds": clock.seconds * self.steps[index] / run,
            "steps": self.steps[index],
            "steps_run": run,
            "resident": clock.resident,
        }

    def accuracy(self) -> dict[str, float]:
        """On the test split, by task."""
        self.model.eval()
        order = sorted(self.test, key=lambda example: len(example["input_ids"]))
        right: dict[str, list[bool]] = {task: [] for task in self.recipe.tasks}
        collate = DataCollatorWithPadding(self.data.tokenizer)
        size, bf16 = self.recipe.evaluation.batch_size, bool(self.side.arguments.get("bf16"))
        for start in range(0, len(order), size):
            batch: Any = collate(order[start : start + size])
            batch = batch.to(self.device)
            with torch.no_grad(), torch.autocast(self.device, torch.bfloat16, enabled=bf16):
                vectors = self.model.vectors(batch["input_ids"], batch["attention_mask"])
                for index, (task, head) in enumerate(self.model.heads.items()):
                    rows = batch["task"] == index
                    right[task] += (head(vectors[rows]).argmax(dim=-1) == batch["labels"][rows]).tolist()
        return {f"test/{task}/accuracy": sum(answers) / len(answers) for task, answers in right.items()}

    def run(self) -> dict[str, Any]:
        """Trains all phases and measures after each, as the harness does."""
        lines, accuracy = [], {}
        for index in range(len(self.recipe.phases)):
            lines.append(self.phase(index))
            accuracy = self.accuracy()
        torch.save(self.model.state_dict(), self.out / "model.pt")
        return {"phases": lines, **accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description="One run of a recipe with the HF Trainer.")
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--gpu", action="store_true", help="on the GPU")
    parser.add_argument("--share", type=float, default=1.0, help="of each phase's steps to run (%(default)s)")
    options, arguments = parser.parse_known_args()
    options.out.mkdir()
    device = "cuda" if options.gpu else "cpu"
    summary = Training(parse(arguments).recipe, SIDES[options.side], options.out, options.share, device).run()
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
