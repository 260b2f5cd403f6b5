"""What it saves to train a table of tokens with only the rows that texts use: steps with the whole one, over these.

`python -m benchmarks.vocabulary [--rounds N] [--threads N] [key=value]...` trains everything on the quickstart's rows,
bf16, one process, both ways in turn: with the encoder's own table, and with one as large as a multilingual encoder's.
Printed are the seconds of the same steps as median (least to greatest), and the megabytes of weights, gradients and
moments.
"""

import time
from collections.abc import Sequence
from unittest.mock import patch

import torch
from transformers import PretrainedConfig, PreTrainedModel

from benchmarks.runs import overrides_of, parser_of, recipe, spread
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import ModelConfig, Recipe
from mtl_dist.models.encoder import load_encoder
from mtl_dist.train_state import TrainState
from mtl_dist.training import run
from mtl_dist.training.context import RunContext
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.utils.in_process import setup_here

MULTILINGUAL = 250_002
"""Rows of XLM-R's table (Conneau et al. 2020)."""
STEPS = 20
"""Of a round."""
WARM_UP = 5


def made(asked: Recipe, rows: int | None, whole: bool) -> RunContext:
    """A run that trains everything. `rows`: of the table, where not as it came."""

    def load(model: ModelConfig, config: PretrainedConfig) -> PreTrainedModel:
        encoder = load_encoder(model, config)
        if rows is not None:
            encoder.resize_token_embeddings(rows, mean_resizing=False)
        return encoder

    with patch.object(run, "load_encoder", load):
        if whole:
            with patch.object(run, "trim_vocabulary", lambda *_: None):
                setup = setup_here(asked, precision="bf16")
        else:
            setup = setup_here(asked, precision="bf16")
    phase = setup.rates.schedule.phases[0]
    setup.engine.enter_phase(phase.name, phase.units)
    setup.engine.train_mode()
    return setup


def seconds_of(trainer: LayerwiseLearningRateTrainer, steps: range) -> float:
    began = time.perf_counter()
    for step in steps:
        trainer.training_step(step)
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser_of(str(__doc__), rounds=5).parse_intermixed_args(arguments)
    torch.set_num_threads(options.threads)
    asked = parse(recipe((1,), *overrides_of(options), first=2)).recipe
    for rows in (None, MULTILINGUAL):
        trainers = [LayerwiseLearningRateTrainer(made(asked, rows, whole), TrainState()) for whole in (True, False)]
        ratios = []
        for number in range(options.rounds + 1):
            first = WARM_UP + STEPS * (number - 1) if number else 0
            steps = range(first, first + (STEPS if number else WARM_UP))
            whole, used = (seconds_of(trainer, steps) for trainer in trainers)
            ratios.append(whole / used)
        sizes = [sum(one.numel() for one in trainer.engine.model.parameters()) for trainer in trainers]
        table = trainers[0].engine.model.sentence_transformer.encoder.get_input_embeddings().num_embeddings
        megabytes = " and ".join(f"{4 * 4 * size / 1e6:.0f}" for size in sizes)
        print(f"{table} rows: {spread(ratios[1:])} times as long, {megabytes} MB", flush=True)


if __name__ == "__main__":
    main()
