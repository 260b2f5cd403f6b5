"""Functions of the benchmarks, and the commands of benchmarks/gpu.sh."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import saving
from benchmarks.flops import work_of
from benchmarks.generated_data import CLASSES, LONGEST, make_quickstart
from benchmarks.hf_baseline_model import SharedEncoder
from benchmarks.hf_trainer import ratios
from benchmarks.sharing import SIDES, shared_recipe
from benchmarks.training_runs import QUICK, Run, recipe_arguments
from mtl_dist.checkpoint.format import sha256_of
from mtl_dist.config.load import parse
from tests.distributed.launching import ROOT
from tests.utils.in_process import setup_here
from tests.utils.tiny import tiny_recipe


@pytest.mark.parametrize(("phase", "unit"), [("heads", "heads.mood"), ("all", "blocks.0")])
def test_useful_flops_match_torchs_flop_counter(tmp_path: Path, phase: str, unit: str) -> None:
    asked = tiny_recipe(tmp_path, f"data.cache_dir={tmp_path / 'cache'}", "cache.mode=never")
    setup, work = setup_here(asked), work_of(asked)
    rows = np.flatnonzero(setup.data.tasks["mood"].examples.splits["train"].lengths == 8)
    inputs = setup.data.training_batch(np.ones(len(rows), dtype=np.int64), rows)
    one_length = type(work)(
        work.hidden,
        work.inner,
        work.matrices,
        work.trainable,
        np.full(1, 8),
        {"heads.topic": 0.0, "heads.mood": 1.0},
    )
    model = setup.engine.model
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


GPU_SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def commands_of(*options: str) -> dict[str, list[str]]:
    """Arguments of Python in the lines that benchmarks/gpu.sh would run, by name."""
    environment = os.environ | {"PYTHON": "python"}
    done = subprocess.run(
        [GPU_SCRIPT, *options, "--list"], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    words = [shlex.split(line) for line in done.stdout.splitlines()]
    assert all(line[1:2] + line[3:5] == ["timeout", "python", "-m"] for line in words)
    return {line[0].rstrip(":"): line[5:] for line in words}


@pytest.mark.parametrize("options", [(), ("--tiny",)])
def test_the_gpu_script_names_existing_benchmarks_and_options(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = commands_of(*options)
    assert commands.pop("tests")[-1] == "tests/gpu"
    assert (ROOT / "tests" / "gpu").is_dir()
    for name, (module, *arguments) in commands.items():
        assert module == f"benchmarks.{name}"
        assert ("--gpu" in arguments) == (not options)
        # argparse reads the options before --help in order, and would refuse them first.
        monkeypatch.setattr(sys, "argv", [module, *arguments, "--help"])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(module).main()
        assert ended.value.code == 0, capsys.readouterr().err
        printed = capsys.readouterr().out
        assert {one for one in arguments if one.startswith("--")} <= set(re.findall(r"--\w+", printed)), name


def test_the_gpu_script_without_its_flags_runs_the_same_lines() -> None:
    assert list(commands_of()) == list(commands_of("--tiny"))


def test_generated_data_replaces_the_quickstarts(tmp_path: Path) -> None:
    overrides = make_quickstart("tiny", tmp_path)
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    asked = parse(recipe_arguments((1, 1, 1), *overrides, *QUICK, cache)).recipe
    setup = setup_here(asked)
    lengths = np.concatenate([examples.splits["train"].lengths for examples in setup.data.sets])
    assert 21 < lengths.mean() < 25
    assert lengths.max() <= LONGEST
    assert {task: set(source.labels) for task, source in setup.data.tasks.items()} == {
        task: set(classes) for task, classes in CLASSES.items()
    }
    modified = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("tiny/*"))]
    assert make_quickstart("tiny", tmp_path) == overrides
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("tiny/*"))] == modified


def test_a_save_of_each_side_is_a_safetensors_file_with_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {"a": torch.randn(300, 5000), "b": torch.tensor(1.0)}
    if hasattr(os, "O_DIRECT") and direct_calls_work(tmp_path):
        digest = saving.save_direct(tmp_path / "direct", tensors)
        assert digest == sha256_of(tmp_path / "direct") == saving.read_direct(tmp_path / "direct")
        assert load_file(tmp_path / "direct")["a"].equal(tensors["a"])
    else:
        monkeypatch.setattr(saving, "DIRECT", 0)
    monkeypatch.setattr(sys, "argv", ["saving", "--tiny", "--rounds", "2", "--folder", str(tmp_path)])
    saving.main()
    printed = capsys.readouterr().out
    assert re.search(r"library: \S+ s, \S+ \(\S+ to \S+\) times as long as direct", printed)


def direct_calls_work(folder: Path) -> bool:
    """Whether the file system supports O_DIRECT."""
    try:
        os.close(os.open(folder / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_the_benchmark_of_sharing_has_the_same_labels_on_both_sides(tmp_path: Path) -> None:
    """An epoch of either side draws each label of each task once."""
    overrides = make_quickstart("tiny", tmp_path)
    file = shared_recipe(tmp_path, parse(recipe_arguments((1, 1, 1), *overrides, *QUICK)).recipe)
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    steps = {}
    for side in SIDES:
        setup = setup_here(parse(["--config", str(file), f"sampling.rows={side}", cache]).recipe)
        assert list(setup.data.tasks) == [*CLASSES, "length"]
        assert {task.rows("train") for task in setup.data.tasks.values()} == {320}
        phase = setup.rates.schedule.phases[0]
        counts = np.sum([setup.sampler.batch(step).counts for step in range(phase.start, phase.stop)], axis=0)
        assert np.ptp(counts) <= 1
        assert counts[0] == pytest.approx(320, abs=32)
        steps[side] = phase.steps
    assert steps == {"shared": 10, "per_task": 30}
