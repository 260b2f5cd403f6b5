"""Reading a finished run from its folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mtl_dist.config.load import parse_recipe_of_run
from mtl_dist.config.recipe import ModelConfig, Recipe
from mtl_dist.config.sources import text_of
from mtl_dist.data.tokenization import load_tokenizer
from mtl_dist.errors import UserError, did_you_mean
from mtl_dist.models.encoder import num_positions
from mtl_dist.models.limits import limits_of
from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.run_layout import MODEL, RECIPE, SUMMARY


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a finished run with its recipe and summary."""

    folder: Path
    recipe: Recipe
    summary: dict[str, Any]
    """Content of summary.json; empty where the folder has none."""

    @property
    def model_folder(self) -> Path:
        return self.folder / MODEL

    def load_model(self) -> MultitaskTransformer:
        """The trained model in eval mode on the CPU.

        Raises UserError where it cannot be read, is not finite or has fewer positions than the recipe's texts.
        """
        model = MultitaskTransformer.from_pretrained(
            self.model_folder, trust_remote_code=self.recipe.model.trust_remote_code
        )
        positions, longest = num_positions(model.sentence_transformer.encoder), self.recipe.data.max_length
        if positions is not None and longest > positions:
            raise UserError(
                f"{self.folder / RECIPE}: data.max_length: {longest} is more than the {positions} positions of the"
                f" encoder in {self.model_folder}"
            )
        return model

    def load_tokenizer(self, model: MultitaskTransformer) -> PreTrainedTokenizerBase:
        """The tokenizer saved with `model`, which it is fitted to. Raises UserError where it cannot be used."""
        tokenizer = load_tokenizer(
            ModelConfig(encoder=str(self.model_folder), trust_remote_code=self.recipe.model.trust_remote_code)
        )
        pairs = any(len(text_of(self.recipe, task)) == 2 for task in self.recipe.tasks)
        limits_of(model.sentence_transformer.encoder).fit_tokenizer(tokenizer, pairs, str(self.model_folder))
        return tokenizer

    def check_task(self, task: str) -> None:
        """Raises UserError for a task that is not in the run's recipe."""
        if task not in self.recipe.tasks:
            raise UserError(f"--task: {self.folder} has no task {task!r}{did_you_mean(task, self.recipe.tasks)}")


def open_run(folder: str | Path) -> FinishedRun:
    """The finished run in `folder`. Raises UserError where there is none."""
    folder = Path(folder)
    if not (folder / RECIPE).is_file():
        what = f"has no {RECIPE}, so it is no run folder" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder} {what}; name the output_dir of a run")
    if not (folder / MODEL).is_dir():
        raise UserError(f"{folder} has no {MODEL}/: the run is not finished; the command that started it resumes it")
    recipe = parse_recipe_of_run(folder / RECIPE)
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        summary = {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / SUMMARY} cannot be read: {error}") from error
    return FinishedRun(folder, recipe, summary)


def device_here() -> torch.device:
    """The first GPU where PyTorch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
