"""The request to `accelerate launch`: its command line, read from the parent process, and its config file."""

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml
from accelerate.commands.config.config_args import (
    ClusterConfig,
    SageMakerConfig,
    default_config_file,
    load_config_from_file,
)
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from mtl_dist.errors import UserError

SHARDING_ENGINES = (DistributedType.FSDP, DistributedType.DEEPSPEED)
"""Engines that have a section of settings in the config file, and flags for them."""
GPU_ENGINES = {DistributedType.MULTI_GPU, *SHARDING_ENGINES}
"""Engines that Accelerate runs on GPUs unless a file or flag says otherwise."""
ACCUMULATION = "gradient_accumulation_steps"
ENVIRONMENT = "the environment"
"""Source of a request without `accelerate launch`."""


@dataclass(frozen=True)
class LaunchRequest:
    """What a launch was asked for; None where it was left open."""

    source: str
    """The file or command with the request, for messages."""
    processes: int | None = None
    machines: int | None = None
    precision: str | None = None
    engine: DistributedType | None = None
    device: Literal["cpu", "gpu"] | None = None
    accumulation: int | None = None
    """Gradient accumulation steps."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The engine's own settings: its section of the file, overridden by its flags."""


def launcher_command(parent: psutil.Process | None) -> list[str]:
    """Arguments of `accelerate launch` if that is the parent process; empty otherwise."""
    try:
        words = parent.cmdline() if parent else []
    except psutil.Error:  # a process of another user, or one that has ended: there is no request that we could read
        return []
    for index, word in enumerate(words[:-1]):
        if Path(word).name == "accelerate" and words[index + 1] == "launch":
            return words[index + 2 :]
        if Path(word).name == "accelerate-launch" or word == "accelerate.commands.launch":
            return words[index + 1 :]
    return []


def read_request(command: Sequence[str]) -> LaunchRequest:
    """The request of the arguments of `accelerate launch` and of its config file.

    Flags take precedence over the file, as in Accelerate. An empty `command` (plain `python`, torchrun) requests
    nothing but the number of processes in the environment. Raises UserError for a SageMaker configuration.
    """
    if not command:
        world_size = os.environ.get("WORLD_SIZE")  # not set by mpirun
        return LaunchRequest(ENVIRONMENT, processes=int(world_size) if world_size else None)
    flags = launch_command_parser().parse_args(list(command))
    path = flags.config_file
    if path is None and Path(default_config_file).is_file() and not flags.cpu:
        path = default_config_file
    config = load_config_from_file(path) if path else None
    if isinstance(config, SageMakerConfig):
        raise UserError(f"{path}: launching on SageMaker is not supported; use compute_environment: LOCAL_MACHINE")
    engine = _engine(flags, config)
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


def _engine(flags: argparse.Namespace, config: ClusterConfig | None) -> DistributedType | None:
    engine = DistributedType(config.distributed_type) if config else None
    for chosen, flag in (
        (DistributedType.MULTI_GPU, flags.multi_gpu),
        (DistributedType.FSDP, flags.use_fsdp),
        (DistributedType.DEEPSPEED, flags.use_deepspeed),
        (DistributedType.MEGATRON_LM, flags.use_megatron_lm),
        (DistributedType.XLA, flags.tpu),
    ):
        engine = chosen if flag else engine
    return engine


def _settings(
    engine: DistributedType | None, flags: argparse.Namespace, config: ClusterConfig | None
) -> dict[str, Any]:
    """Settings of `engine` alone, and gradient accumulation, which Accelerate counts among DeepSpeed's."""
    titles = {"FSDP Arguments": DistributedType.FSDP, "DeepSpeed Arguments": DistributedType.DEEPSPEED}
    parser: Any = launch_command_parser()
    flags_of_engine = {
        action.dest
        for group in parser._action_groups
        if group.title in titles and engine == titles[group.title]
        for action in group._group_actions
    }
    section: dict[str, Any] = {}
    if config is not None and engine in SHARDING_ENGINES:
        section = dict((config.fsdp_config if engine == DistributedType.FSDP else config.deepspeed_config) or {})
        if engine == DistributedType.FSDP:  # Accelerate adds the prefix where it is left out
            section = {f"fsdp_{key.removeprefix('fsdp_')}": value for key, value in section.items()}
    given = {
        key: yaml.safe_load(str(getattr(flags, key)))
        for key in flags.nondefault  # in which Accelerate keeps the names of the flags that were given
        if key in flags_of_engine or key == ACCUMULATION
    }
    return {**section, **given}


def _device(engine: DistributedType | None, cpu_flag: bool, path: str | None) -> Literal["cpu", "gpu"] | None:
    """The requested kind of device; `use_cpu: false` in a file requests a GPU, which Accelerate ignores."""
    file = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path else {}
    if cpu_flag or file.get("use_cpu"):
        return "cpu"
    return "gpu" if engine in GPU_ENGINES or "use_cpu" in file else None
