"""Step time with the whole token embedding, relative to one trimmed to the tokens that occur in the texts.

`python -m benchmarks.vocab_trimming [--gpu] [--rounds N] [--threads N] [key=value]...` trains everything on the
quickstart's rows in bf16 on one process, with and without trimming in alternation: with the encoder's own vocabulary,
and with one as large as a multilingual encoder's. Printed are ratios of the seconds of the same steps as median
(minimum to maximum), and the megabytes of weights, gradients and optimizer state.
"""

import time
from collections.abc import Sequence
from unittest.mock import patch

import torch
from transformers import PretrainedConfig, PreTrainedModel

from benchmarks.training_runs import make_parser, recipe_arguments, recipe_overrides, spread
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import ModelConfig, Recipe
from mtl_dist.models.encoder import load_encoder
from mtl_dist.train_state import TrainState
from mtl_dist.training import build
from mtl_dist.training.context import RunContext
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.utils.in_process import setup_here

MULTILINGUAL = 250_002
"""Vocabulary size of XLM-R (Conneau et al. 2020)."""
STEPS = 20
"""Steps of each side in a round."""
WARM_UP = 5


def make_setup(recipe: Recipe, rows: int | None, whole: bool, on_cpu: bool) -> RunContext:
    """A run that trains everything. `rows` replaces the vocabulary size; `whole` turns trimming off."""

    def load(model: ModelConfig, config: PretrainedConfig) -> PreTrainedModel:
        encoder = load_encoder(model, config)
        if rows is not None:
            encoder.resize_token_embeddings(rows, mean_resizing=False)
        return encoder

    with patch.object(build, "load_encoder", load):
        if whole:
            with patch.object(build, "trim_vocabulary", lambda *_: None):
                setup = setup_here(recipe, precision="bf16", on_cpu=on_cpu)
        else:
            setup = setup_here(recipe, precision="bf16", on_cpu=on_cpu)
    phase = setup.rates.schedule.phases[0]
    setup.engine.enter_phase(phase.name, phase.units)
    setup.engine.train_mode()
    return setup


def seconds_of(trainer: LayerwiseLearningRateTrainer, steps: range) -> float:
    """Seconds that `steps` take."""
    began = time.perf_counter()
    for step in steps:
        trainer.training_step(step)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser(str(__doc__), rounds=5).parse_intermixed_args(arguments)
    torch.set_num_threads(options.threads)
    recipe = parse(recipe_arguments((10,), *recipe_overrides(options), first=2)).recipe
    for rows in (None, MULTILINGUAL):
        setups = (make_setup(recipe, rows, whole, on_cpu=not options.gpu) for whole in (True, False))
        trainers = [LayerwiseLearningRateTrainer(setup, TrainState()) for setup in setups]
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
