"""`mtl-dist train`: the command line that starts the launcher; tests/distributed/test_launch.py starts it."""

import os
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from mtl_dist.cli.main import main
from mtl_dist.resources import ENGINES, TRAIN_SCRIPT, engine_names
from tests.utils.tiny import tiny_recipe_file

LAUNCHER = [sys.executable, "-m", "mtl_dist.cluster.quiet_launch", "accelerate", "launch"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_recipe_file(tmp_path_factory.mktemp("train")))


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The words of the launcher's command line after those that start it."""
    code = main(["train", *words, "--dry-run"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    (line,) = printed.out.splitlines()
    command = shlex.split(line)
    assert command[: len(LAUNCHER)] == LAUNCHER
    return command[len(LAUNCHER) :]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["train", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line.removeprefix("error: ")


def test_there_is_an_engine_for_each_file() -> None:
    assert engine_names() == sorted(path.stem for path in (Path(__file__).parents[3] / "accelerate_configs").iterdir())


@pytest.mark.parametrize("engine", [name for name in engine_names() if not name.startswith("multi_node_")])
def test_an_engine_is_started_with_its_file_and_its_processes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: str, engine: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = ENGINES / f"{engine}.yaml"
    processes = yaml.safe_load(file.read_text())["num_processes"]
    port = ["--main_process_port", "0"] if processes > 1 else []
    assert dry_run(capsys, recipe, "--engine", engine) == [
        *("--config_file", str(file), "--num_processes", str(processes), "--num_machines", "1", *port),
        *(str(TRAIN_SCRIPT), "--config", recipe),
    ]


def test_words_with_an_equals_sign_are_overrides_and_others_recipes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe: str
) -> None:
    (tmp_path / "more.yaml").write_text("seed: 5\n")
    words = dry_run(capsys, "batch_size=6", recipe, "seed=7", str(tmp_path / "more.yaml"), "--engine", "cpu")
    after = words[words.index(str(TRAIN_SCRIPT)) + 1 :]
    assert after == ["--config", recipe, "--config", str(tmp_path / "more.yaml"), "batch_size=6", "seed=7"]


def test_options_reach_the_launcher(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = dry_run(
        capsys,
        *(recipe, "--engine", "multi_node_fsdp2", "--num-machines", "3", "--num-processes", "12"),
        *("--machine-rank", "2", "--main-process-ip", "first", "--main-process-port", "1234"),
        *("--mixed-precision", "bf16", "--gradient-accumulation-steps", "4"),
    )
    assert words[: words.index(str(TRAIN_SCRIPT))] == [
        *("--config_file", str(ENGINES / "multi_node_fsdp2.yaml"), "--num_processes", "12", "--num_machines", "3"),
        *("--machine_rank", "2", "--main_process_ip", "first", "--rdzv_backend", "static", "--same_network"),
        *("--main_process_port", "1234", "--mixed_precision", "bf16", "--gradient_accumulation_steps", "4"),
    ]


def test_machines_meet_at_the_port_of_accelerate(capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    words = dry_run(capsys, recipe, "--engine", "multi_node_cpu", "--main-process-ip", "first")
    assert words[words.index("--main_process_port") + 1] == "29500"


def test_a_file_of_the_users_own_is_an_engine(capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 3\nuse_cpu: true\n")
    words = dry_run(capsys, recipe, "--engine", str(file))
    assert words[:4] == ["--config_file", str(file), "--num_processes", "3"]


def test_threads_on_cpus_are_those_that_accelerate_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    option = "--num_cpu_threads_per_process"
    words = dry_run(capsys, recipe, "--engine", "multi_cpu")
    assert words[words.index(option) + 1] == "4"
    assert option not in dry_run(capsys, recipe, "--engine", "multi_gpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert option not in dry_run(capsys, recipe, "--engine", "multi_cpu")


@pytest.mark.parametrize(
    ("script", "engine", "reason"),
    [
        (None, "cpu", "nvidia-smi is not installed"),
        ("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'", "gpu", "nvidia-smi lists GPU 0: NVIDIA H100"),
        ("echo 'No devices found.'", "cpu", "nvidia-smi lists no GPU"),
        ("echo 'GPU 0: NVIDIA H100'; exit 9", "cpu", "nvidia-smi lists no GPU"),
    ],
)
def test_without_an_engine_the_machine_decides_and_it_is_said(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    recipe: str,
    script: str | None,
    engine: str,
    reason: str,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    assert main(["train", recipe, "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert f"--config_file {ENGINES / engine}.yaml --num_processes 1 " in printed.out
    assert printed.err == f"engine: {engine} ({reason}); --engine chooses another\n"


def test_hidden_gpus_are_not_taken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["train", recipe, "--dry-run"]) == 0
    assert capsys.readouterr().err == "engine: cpu (CUDA_VISIBLE_DEVICES hides all GPUs); --engine chooses another\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--engine", "zeroo2"), "--engine: zeroo2: unknown engine; did you mean zero2?"),
        (("--engine", "none.yaml"), "--engine: none.yaml: No such file or directory"),
        (("--engine", "{recipe}"), "--engine: {recipe}: is not a configuration of accelerate"),
        (("--engine", "cpu", "--num-processes", "2"), "--engine: {cpu}: is for one process, 2 are asked for"),
        (("--engine", "multi_cpu", "--num-processes", "0"), "--num-processes: 0 is not at least 1"),
        (
            ("--engine", "cpu", "--gradient-accumulation-steps", "0"),
            "--gradient-accumulation-steps: 0 is not at least 1",
        ),
        (
            ("--engine", "multi_node_cpu", "--main-process-ip", "a", "--num-processes", "3"),
            "--num-processes: 3 cannot be divided among 2 machines",
        ),
        (("--engine", "multi_node_cpu"), "--main-process-ip: missing; name the machine of rank 0"),
        (
            ("--engine", "multi_node_cpu", "--main-process-ip", "a", "--machine-rank", "2"),
            "--machine-rank: 2 is not among 0 to 1; --num-machines is 2",
        ),
        (
            ("--engine", "cpu", "--num-machines", "2", "--num-processes", "1"),
            "--engine: {cpu}: is for one machine, 2 are asked for; use accelerate_configs/multi_node_*.yaml",
        ),
        (("--engine", "cpu", "seed=x"), "command line: seed: 'x' is not a whole number"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_started(
    capsys: pytest.CaptureFixture[str], recipe: str, words: tuple[str, ...], line: str
) -> None:
    names = {"{recipe}": recipe, "{cpu}": str(ENGINES / "cpu.yaml")}
    for name, value in names.items():
        words, line = tuple(word.replace(name, value) for word in words), line.replace(name, value)
    assert refused(capsys, recipe, *words) == line


def test_deepspeed_is_named_where_it_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setattr("mtl_dist.cli.train.find_spec", lambda name: None)
    line = "--engine: zero2 needs DeepSpeed; install mtl_dist[deepspeed]"
    assert refused(capsys, recipe, "--engine", "zero2") == line


def test_nothing_is_started_by_a_dry_run(capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    dry_run(capsys, recipe, "--engine", "cpu")
    assert not (Path(recipe).parent / "run").exists()
    assert os.environ.get("TORCHELASTIC_RUN_ID") is None


def test_a_recipe_file_may_have_an_equals_sign_in_its_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe: str
) -> None:
    """Sweeps name folders so."""
    path = tmp_path / "lr=1" / "recipe.yaml"
    path.parent.mkdir()
    path.write_bytes(Path(recipe).read_bytes())
    assert dry_run(capsys, str(path), "--engine", "cpu")[-2:] == ["--config", str(path)]


@pytest.mark.parametrize(("words", "engine"), [((), "cpu"), (("--num-processes", "2"), "multi_cpu")])
def test_the_default_engine_fits_the_number_of_processes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    words: tuple[str, ...],
    engine: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["train", recipe, *words, "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert f"--config_file {ENGINES / engine}.yaml " in printed.out
    assert printed.err == f"engine: {engine} (CUDA_VISIBLE_DEVICES hides all GPUs); --engine chooses another\n"


def test_a_mistake_without_an_engine_is_one_line(capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    assert refused(capsys, recipe, "--num-processes", "0") == "--num-processes: 0 is not at least 1"
