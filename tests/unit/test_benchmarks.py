"""Functions of the benchmarks, and the commands of benchmarks/gpu.sh."""

from pathlib import Path

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import work_of
from benchmarks.hf_baseline_model import SharedEncoder
from benchmarks.hf_trainer import ratios
from benchmarks.training_runs import Run, recipe_arguments
from mtl_dist.config.load import parse
from tests.utils.in_process import setup_here
from tests.utils.tiny import tiny_recipe


@pytest.mark.parametrize(("phase", "unit"), [("heads", "heads.mood"), ("all", "blocks.0")])
def test_useful_flops_match_torchs_flop_counter(tmp_path: Path, phase: str, unit: str) -> None:
    asked = tiny_recipe(tmp_path, f"data.cache_dir={tmp_path / 'cache'}", "cache.mode=never")
    setup, work = setup_here(asked), work_of(asked)
    rows = np.flatnonzero(setup.data.tasks["mood"].splits["train"].lengths == 8)
    inputs = setup.data.batch("train", np.ones(len(rows), dtype=np.int64), rows)
    one_length = type(work)(
        work.hidden,
        work.inner,
        work.matrices,
        work.trainable,
        np.full(1, 8),
        {"heads.topic": 0.0, "heads.mood": 1.0},
    )
    model = setup.engine.raw
    model.sentence_transformer.encoder.set_attn_implementation("eager")  # as matrix products, which the counter sees
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name in model.unit_parameters()[one] for one in work.trainable[phase]))
    with FlopCounterMode(display=False) as counter:
        model(inputs.input_ids, inputs.attention_mask, inputs.rows)["mood"].sum().backward()
    useful = one_length.useful(phase, len(rows))
    assert unit in work.trainable[phase]
    # The formula counts a gradient of the input of the lowest trainable layer, which is not needed.
    assert counter.get_total_flops() <= useful <= 1.03 * counter.get_total_flops()


def test_ratios_are_taken_round_by_round() -> None:
    mine = [Run({"heads": 1.0, "all": 3.0}, 10.0, {}, {}), Run({"heads": 2.0, "all": 2.0}, 20.0, {}, {})]
    theirs = [Run({"heads": 4.0, "all": 4.0}, 10.0, {}, {}), Run({"heads": 4.0, "all": 4.0}, 10.0, {}, {})]
    assert ratios(theirs, mine, whole=True) == {
        "heads": [4.0, 2.0],
        "all": [4 / 3, 2.0],
        "training": [2.0, 2.0],
        "process": [1.0, 0.5],
    }


def test_the_hf_baseline_keeps_frozen_modules_in_eval_mode_if_asked_to(tmp_path: Path) -> None:
    asked = tiny_recipe(tmp_path)
    for in_eval in (True, False):
        model = SharedEncoder(asked, [4, 3], in_eval)
        model.unfreeze(["heads.topic", "heads.mood", "blocks.3"])
        for _ in range(2):
            model.eval()
            model.train().train()
            modes = {unit: module.training for unit, module in model.units().items()}
            frozen = {"embeddings", "blocks.0", "blocks.1", "blocks.2"}
            assert modes == {unit: not in_eval or unit not in frozen for unit in modes}
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert all(name.startswith(("heads.", "encoder.encoder.layer.3.")) for name in trainable)


def test_a_schedule_has_the_quickstarts_phases_with_other_lengths() -> None:
    quickstart = parse(["--config", "recipes/quickstart.yaml"]).recipe
    asked = parse(recipe_arguments((1, 3, 2))).recipe
    assert [(phase.name, phase.train) for phase in asked.phases] == [
        (phase.name, phase.train) for phase in quickstart.phases
    ]
    assert [phase.epochs for phase in asked.phases] == [1, 3, 2]
