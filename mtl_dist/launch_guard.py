"""What the launcher was asked for against what the run got.

Accelerate falls back in silence: a `MULTI_CPU` file starts one process, a GPU file on a machine without one trains on
the CPU, fp16 on a CPU is fp32. Each of these would be another run than the one asked for, so each is refused here.
What was asked for stands on the command line of the parent process, `accelerate launch`, and in its config file.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import SageMakerConfig, default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from mtl_dist.errors import UserError
from mtl_dist.processes import Processes

SUPPORTED_ENGINES = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP}
FSDP_SETTINGS: dict[str, tuple[Any, ...]] = {
    "fsdp_version": (2,),
    "fsdp_reshard_after_forward": (True, False),
    "fsdp_offload_params": (False,),
}
"""What `fsdp_config` may hold. Blocks are always the units of sharding; state is always saved whole."""
ENGINE_VARIABLES = {
    "ACCELERATE_USE_FSDP": DistributedType.FSDP,
    "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED,
}
"""How `accelerate launch` tells its processes of an engine."""
GPU_ENGINES = {DistributedType.MULTI_GPU, DistributedType.FSDP}


@dataclass(frozen=True)
class Asked:
    """A launcher's request; None where it left a thing open."""

    source: str
    """Where the request stands, for messages."""
    processes: int | None = None
    machines: int | None = None
    precision: str | None = None
    engine: DistributedType | None = None
    cpu: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The engine's own section of the config file."""


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


def read_request(command: Sequence[str]) -> Asked:
    """What an `accelerate launch` command line and its config file ask for.

    Explicit flags win over the file, as in Accelerate. An empty command (plain `python`, torchrun) asks for nothing.
    """
    if not command:
        world_size = os.environ.get("WORLD_SIZE")  # not set by mpirun
        return Asked("the environment", processes=int(world_size) if world_size else None)
    flags = launch_command_parser().parse_args(list(command))
    path = flags.config_file
    if path is None and Path(default_config_file).is_file() and not flags.cpu:
        path = default_config_file
    config = load_config_from_file(path) if path else None
    if isinstance(config, SageMakerConfig):
        raise UserError(f"{path}: launching on SageMaker is not supported; use compute_environment: LOCAL_MACHINE")
    engine = config.distributed_type if config else None
    for chosen, flag in (
        (DistributedType.MULTI_GPU, flags.multi_gpu),
        (DistributedType.FSDP, flags.use_fsdp),
        (DistributedType.DEEPSPEED, flags.use_deepspeed),
        (DistributedType.MEGATRON_LM, flags.use_megatron_lm),
        (DistributedType.XLA, flags.tpu),
    ):
        engine = chosen if flag else engine
    file_processes = config.num_processes if config and config.num_processes > 0 else None
    return Asked(
        source=path or f"accelerate launch {shlex.join(command[:4])} ...",
        processes=flags.num_processes or file_processes,
        machines=flags.num_machines or (config.num_machines if config else None),
        precision=flags.mixed_precision or (config.mixed_precision if config else None),
        engine=DistributedType(engine) if engine else None,
        cpu=bool(flags.cpu or (config and config.use_cpu)),
        settings=(config.fsdp_config or config.deepspeed_config or {}) if config else {},
    )


def start_accelerator() -> tuple[Accelerator, Processes, Asked]:
    """The Accelerator of this process and what was asked for, or UserError where the one is not the other."""
    asked = read_request(launcher_command(psutil.Process().parent()))
    check_request(asked)
    # Accelerate brings processes, device and precision; its own engines fall back to DDP on CPUs, so ours wrap.
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    accelerator = Accelerator(cpu=asked.cpu or _cpu_by_environment() or not torch.cuda.is_available())
    processes = Processes(accelerator.process_index, accelerator.num_processes, accelerator.local_process_index)
    check_given(asked, accelerator)
    return accelerator, processes, asked


def check_request(asked: Asked) -> None:
    """Refuses what can be known to be impossible before any process group is made."""
    where = asked.source
    for variable, engine in ENGINE_VARIABLES.items():
        if _is_set(variable) and asked.engine != engine:
            raise UserError(f"{variable}: {where} does not ask for {engine.value}; ask by accelerate launch and a file")
    if asked.engine is not None and asked.engine not in SUPPORTED_ENGINES:
        raise UserError(f"{where}: engine {asked.engine.value} is not supported yet; use one process, DDP or FSDP2")
    if asked.engine == DistributedType.FSDP:
        _check_fsdp(where, asked.settings)
    on_cpu = asked.cpu or _cpu_by_environment()
    if asked.engine in GPU_ENGINES and not on_cpu and not torch.cuda.is_available():
        raise UserError(f"{where}: asks for GPUs, this machine has none; set ACCELERATE_USE_CPU=true to run on CPUs")
    if asked.precision not in {None, "no", "bf16"}:
        raise UserError(f"{where}: mixed_precision {asked.precision} is not supported; use 'no' or bf16")


def _check_fsdp(where: str, settings: Mapping[str, Any]) -> None:
    """Refuses what FSDP2 here does not do, or does in one way only."""
    if settings.get("fsdp_version") != 2:
        raise UserError(f"{where}: fsdp_version: only 2 is supported; say so under fsdp_config of a config file")
    for key, value in settings.items():
        if key not in FSDP_SETTINGS:
            raise UserError(f"{where}: {key} is not supported; leave only {', '.join(FSDP_SETTINGS)}")
        if value not in FSDP_SETTINGS[key]:
            raise UserError(f"{where}: {key}: {value} is not supported; use {FSDP_SETTINGS[key][0]}")


def check_given(asked: Asked, accelerator: Accelerator) -> None:
    """Refuses a run that is not the one asked for: process count, machines, precision."""
    given = accelerator.num_processes
    if asked.processes is not None and asked.processes != given:
        hint = "; MULTI_CPU starts more than one only through mpirun, accelerate_configs/multi_cpu.yaml shows the way"
        raise UserError(
            f"{asked.source}: asks for {asked.processes} processes, {given} started"
            + (hint if asked.engine == DistributedType.MULTI_CPU else "")
        )
    if asked.engine == DistributedType.FSDP and given == 1:
        raise UserError(f"{asked.source}: one process has nothing to shard; use at least 2, or a file without FSDP")
    if asked.machines is not None and asked.machines > given:
        raise UserError(f"{asked.source}: asks for {asked.machines} machines, this run has {given} process(es)")
    if asked.precision is not None and asked.precision != accelerator.mixed_precision:
        raise UserError(
            f"{asked.source}: asks for mixed_precision {asked.precision}, got {accelerator.mixed_precision}"
        )


def bf16_hint(accelerator: Accelerator) -> str | None:
    """A line for runs in fp32 on a CPU that multiplies bf16 matrices in hardware."""
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "no":
        return None
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    found = next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags), None)
    return f"this CPU has {found}: bf16 would pay; add --mixed_precision bf16 to accelerate launch" if found else None


def _cpu_by_environment() -> bool:
    return _is_set("ACCELERATE_USE_CPU")


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in {"1", "true", "yes"}
