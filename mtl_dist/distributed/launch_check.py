"""What the launcher was asked for against what the run got.

Accelerate falls back in silence: a `MULTI_CPU` file starts one process, a GPU file on a machine without one trains on
the CPU, fp16 on a CPU is fp32. Each of these would be another run than the one asked for, so each is refused here.
What was asked for stands on the command line of the parent process, `accelerate launch`, and in its config file.
"""

import argparse
import ctypes
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import torch.distributed as dist
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import (
    ClusterConfig,
    SageMakerConfig,
    default_config_file,
    load_config_from_file,
)
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, DynamoBackend

from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError

SUPPORTED_ENGINES = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
}
SETTINGS: dict[DistributedType, dict[str, tuple[Any, ...]]] = {
    DistributedType.FSDP: {
        "fsdp_version": (2,),
        "fsdp_reshard_after_forward": (True, False),
        "fsdp_offload_params": (False,),
    },
    DistributedType.DEEPSPEED: {
        "zero_stage": (1, 2, 3),
        "deepspeed_multinode_launcher": ("standard",),
        "offload_optimizer_device": ("none",),
        "offload_param_device": ("none",),
        "zero3_init_flag": (False,),
        "zero3_save_16bit_model": (False,),
    },
}
"""What an engine's section of the file, or its flags, may hold; the first key must be there.

Blocks are always FSDP's units of sharding, the recipe has DeepSpeed's clipping, and state is always saved whole.
"""
ENGINE_VARIABLES = {
    "ACCELERATE_USE_FSDP": DistributedType.FSDP,
    "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED,
}
"""How `accelerate launch` tells its processes of an engine."""
GPU_ENGINES = {DistributedType.MULTI_GPU, *SETTINGS}
ACCUMULATION = "gradient_accumulation_steps"
ATTEMPT_VARIABLE = "TORCHELASTIC_RESTART_COUNT"
"""Set by torchrun, and by `accelerate launch` for more than one process."""
PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""
CPU_VARIABLE = "ACCELERATE_USE_CPU"
"""Takes a file for GPUs to CPUs."""


@dataclass(frozen=True)
class LaunchRequest:
    """A launcher's request; None where it left a thing open."""

    source: str
    """Where the request stands, for messages."""
    processes: int | None = None
    machines: int | None = None
    precision: str | None = None
    engine: DistributedType | None = None
    device: Literal["cpu", "gpu"] | None = None
    accumulation: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The engine's own: what its section of the file says, with its flags in place of that."""


def launcher_command(parent: psutil.Process | None) -> list[str]:
    """Command line of the parent process when it is `accelerate launch`, without the program's own words; else []."""
    try:
        words = parent.cmdline() if parent else []
    except psutil.Error:  # another user's process, or gone: nothing was asked for that we could read
        return []
    for index, word in enumerate(words[:-1]):
        if Path(word).name == "accelerate" and words[index + 1] == "launch":
            return words[index + 2 :]
        if Path(word).name == "accelerate-launch" or word == "accelerate.commands.launch":
            return words[index + 1 :]
    return []


def read_request(command: Sequence[str]) -> LaunchRequest:
    """What an `accelerate launch` command line and its config file ask for.

    Explicit flags win over the file, as in Accelerate. An empty command (plain `python`, torchrun) asks for nothing.
    """
    if not command:
        world_size = os.environ.get("WORLD_SIZE")  # not set by mpirun
        return LaunchRequest("the environment", processes=int(world_size) if world_size else None)
    flags = launch_command_parser().parse_args(list(command))
    path = flags.config_file
    if path is None and Path(default_config_file).is_file() and not flags.cpu:
        path = default_config_file
    config = load_config_from_file(path) if path else None
    if isinstance(config, SageMakerConfig):
        raise UserError(f"{path}: launching on SageMaker is not supported; use compute_environment: LOCAL_MACHINE")
    engine = DistributedType(config.distributed_type) if config else None
    for chosen, flag in (
        (DistributedType.MULTI_GPU, flags.multi_gpu),
        (DistributedType.FSDP, flags.use_fsdp),
        (DistributedType.DEEPSPEED, flags.use_deepspeed),
        (DistributedType.MEGATRON_LM, flags.use_megatron_lm),
        (DistributedType.XLA, flags.tpu),
    ):
        engine = chosen if flag else engine
    settings = _settings(engine, flags, config)
    accumulation = settings.pop(ACCUMULATION, None)
    file_processes = config.num_processes if config and config.num_processes > 0 else None
    return LaunchRequest(
        source=path or f"accelerate launch {shlex.join(command[:4])} ...",
        processes=flags.num_processes or file_processes,
        machines=flags.num_machines or (config.num_machines if config else None),
        precision=flags.mixed_precision or (config.mixed_precision if config else None),
        engine=engine,
        device=_device(engine, flags.cpu, path),
        accumulation=None if accumulation is None else int(accumulation),
        settings=settings,
    )


def _settings(
    engine: DistributedType | None, flags: argparse.Namespace, config: ClusterConfig | None
) -> dict[str, Any]:
    """What file and flags say about `engine` alone, and accumulation, which Accelerate counts with DeepSpeed."""
    sections = {"FSDP Arguments": DistributedType.FSDP, "DeepSpeed Arguments": DistributedType.DEEPSPEED}
    parser: Any = launch_command_parser()
    members = {
        action.dest
        for group in parser._action_groups
        if group.title in sections and engine == sections[group.title]
        for action in group._group_actions
    }
    section: dict[str, Any] = {}
    if config is not None and engine in SETTINGS:
        section = dict((config.fsdp_config if engine == DistributedType.FSDP else config.deepspeed_config) or {})
        if engine == DistributedType.FSDP:  # Accelerate adds the prefix where it is left out
            section = {f"fsdp_{key.removeprefix('fsdp_')}": value for key, value in section.items()}
    given = {
        key: yaml.safe_load(str(getattr(flags, key)))
        for key in flags.nondefault  # where Accelerate keeps what stood on the command line
        if key in members or key == ACCUMULATION
    }
    return {**section, **given}


def _device(engine: DistributedType | None, cpu_flag: bool, path: str | None) -> Literal["cpu", "gpu"] | None:
    """`use_cpu` says "gpu" too where a file has it and it is false; Accelerate passes over that."""
    file = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path else {}
    if cpu_flag or file.get("use_cpu"):
        return "cpu"
    return "gpu" if engine in GPU_ENGINES or "use_cpu" in file else None


def start_accelerator() -> tuple[Accelerator, ProcessGroup, LaunchRequest]:
    """The Accelerator of this process and what was asked for, or UserError where the one is not the other."""
    command = launcher_command(psutil.Process().parent())
    asked = read_request(command)
    check_request(asked)
    if command or ATTEMPT_VARIABLE in os.environ:
        _end_with_the_launcher()
    # Accelerate brings processes, device and precision; its own engines fall back to DDP on CPUs, so ours wrap.
    for variable in ENGINE_VARIABLES:
        os.environ.pop(variable, None)
    on_cpu = asked.device == "cpu" or _is_set(CPU_VARIABLE) or not torch.cuda.is_available()
    if ATTEMPT_VARIABLE in os.environ:
        _meet(on_cpu)
    accelerator = Accelerator(cpu=on_cpu, gradient_accumulation_steps=asked.accumulation or 1)
    processes = ProcessGroup(accelerator.process_index, accelerator.num_processes, accelerator.local_process_index)
    check_launched(asked, accelerator)
    return accelerator, processes, asked


def _end_with_the_launcher() -> None:
    """Has the kernel send SIGTERM to this process when its launcher ends, which may leave it behind otherwise."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _meet(on_cpu: bool) -> None:
    """Joins the process group, under keys of this attempt's own.

    The launcher keeps one store for all attempts of `--max_restarts`, and with Accelerate's keys a new group would read
    the addresses of the last one's processes.
    """
    store, rank, world_size = next(dist.rendezvous("env://"))
    keys = dist.PrefixStore(f"attempt {os.environ[ATTEMPT_VARIABLE]}", store)
    if not on_cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if on_cpu else "nccl", store=keys, rank=rank, world_size=world_size)


def check_request(asked: LaunchRequest) -> None:
    """Refuses what can be known to be impossible before any process group is made."""
    where = asked.source
    for variable, engine in ENGINE_VARIABLES.items():
        if _is_set(variable) and asked.engine != engine:
            raise UserError(f"{variable}: {where} does not ask for {engine.value}; ask by accelerate launch and a file")
    if asked.engine is not None and asked.engine not in SUPPORTED_ENGINES:
        raise UserError(
            f"{where}: engine {asked.engine.value} is not supported; use one process, DDP, FSDP2 or DeepSpeed"
        )
    if asked.engine in SETTINGS:
        _check_settings(where, asked.settings, SETTINGS[asked.engine])
    if asked.device == "gpu" and not _is_set(CPU_VARIABLE) and not torch.cuda.is_available():
        # Starting one process, Accelerate overwrites the variable.
        override = f"set {CPU_VARIABLE}=true" if asked.engine in GPU_ENGINES else "add --cpu to accelerate launch"
        raise UserError(f"{where}: asks for GPUs, this machine has none; {override} to run on CPUs")
    if asked.precision not in {None, "no", "bf16"}:
        raise UserError(f"{where}: mixed_precision {asked.precision} is not supported; use 'no' or bf16")


def _check_settings(where: str, settings: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuses what an engine here does not do, or does in one way only."""
    needed = next(iter(known))
    if needed not in settings:
        raise UserError(f"{where}: {needed}: missing; use {_words(known[needed])}")
    for key, value in settings.items():
        if key not in known:
            raise UserError(f"{where}: {key} is not supported; leave only {', '.join(known)}")
        if value not in known[key]:
            raise UserError(f"{where}: {key}: {value} is not supported; use {_words(known[key])}")


def _words(values: Sequence[Any]) -> str:
    return " or ".join(str(value) for value in values)


def check_launched(asked: LaunchRequest, accelerator: Accelerator) -> None:
    """Refuses a run that is not the one asked for: process count, machines, precision, accumulation, compilation."""
    where, given = asked.source, accelerator.num_processes
    if asked.processes is not None and asked.processes != given:
        hint = "; MULTI_CPU starts more than one only through mpirun, accelerate_configs/multi_cpu.yaml shows the way"
        raise UserError(
            f"{where}: asks for {asked.processes} processes, {given} started"
            + (hint if asked.engine == DistributedType.MULTI_CPU else "")
        )
    if asked.engine in SETTINGS and given == 1:
        raise UserError(f"{where}: one process has nothing to share out; use at least 2, or a file for one")
    if asked.machines is not None and asked.machines > given:
        raise UserError(f"{where}: asks for {asked.machines} machines, this run has {given} process(es)")
    for key, wanted in (("mixed_precision", asked.precision), (ACCUMULATION, asked.accumulation)):
        got = getattr(accelerator, key)
        if wanted is not None and wanted != got:
            raise UserError(f"{where}: asks for {key} {wanted}, got {got}")
    compilation = accelerator.state.dynamo_plugin
    if compilation is not None and compilation.backend != DynamoBackend.NO:
        raise UserError(f"{where}: dynamo_backend is not supported; leave it out")


def bf16_hint(accelerator: Accelerator) -> str | None:
    """A line for runs in fp32 on a CPU that multiplies bf16 matrices in hardware."""
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "no":
        return None
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    found = next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags), None)
    return f"this CPU has {found}: bf16 would pay; add --mixed_precision bf16 to accelerate launch" if found else None


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in {"1", "true", "yes"}
