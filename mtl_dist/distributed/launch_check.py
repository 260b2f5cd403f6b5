"""Start-up of a launched process, and the check that the run is the one that was requested.

Accelerate silently falls back to other configurations: a `MULTI_CPU` file starts one process, a GPU file on a machine
without a GPU trains on the CPU, fp16 on a CPU is fp32. Each of these would be another run than the requested one, so
each is refused.

Variables of Accelerate in the environment are settings too. Some are honoured: ACCELERATE_USE_CPU,
ACCELERATE_MIXED_PRECISION (no or bf16), ACCELERATE_GRADIENT_ACCUMULATION_STEPS, ACCELERATE_CPU_AFFINITY,
ACCELERATE_DEBUG_MODE and ACCELERATE_LOG_LEVEL. Those that would make another run are refused (see
`_check_environment`). Those of one engine (FSDP_..., ACCELERATE_DEEPSPEED_...) or of fp8 have no effect on their own:
Accelerate reads them with ACCELERATE_USE_FSDP, ACCELERATE_USE_DEEPSPEED or fp8, which are refused without a request.
"""

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend

from mtl_dist.distributed.launch_request import (
    ACCUMULATION,
    ENVIRONMENT,
    GPU_ENGINES,
    SHARDING_ENGINES,
    LaunchRequest,
    launcher_command,
    read_request,
)
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.environment import ATTEMPT_VARIABLE, check_variables, has_launcher, is_set
from mtl_dist.errors import UserError

SUPPORTED_ENGINES = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    *SHARDING_ENGINES,
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
"""Settings of an engine, from its section of the file or its flags, with the supported values; the first is required.

Not among them, because they are fixed: FSDP shards by encoder block, gradient clipping comes from the recipe, and
state is saved unsharded.
"""
ENGINE_VARIABLES = {
    "ACCELERATE_USE_FSDP": DistributedType.FSDP,
    "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED,
}
"""Environment variables by which `accelerate launch` selects an engine in its processes."""
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Variables that make a process one of several; left over in a shell, they make it wait for others in vain."""
UNSUPPORTED_FLAGS = ("ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG", "ACCELERATE_USE_SAGEMAKER")
"""Variables that make another kind of run where they are true."""
UNSUPPORTED_VARIABLES = {
    "ACCELERATE_TORCH_DEVICE": "choose GPUs by CUDA_VISIBLE_DEVICES, or the CPU by ACCELERATE_USE_CPU=true",
    "ACCELERATE_GRADIENT_CLIPPING": "the recipe has it as optimizer.max_grad_norm",
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": "give the settings in accelerate's own file",
}
"""Variables that would be ignored, or make another run -> what to use instead."""
NO_COMPILATION = {"ACCELERATE_DYNAMO_BACKEND": "no", "ACCELERATE_DYNAMO_MODE": "default"}
"""What `accelerate launch` sets for a run that is not compiled."""
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
AGENT_STORE_VARIABLE = "TORCHELASTIC_USE_AGENT_STORE"
"""`True` where the launcher keeps the store at MASTER_ADDR."""
CONNECT_SECONDS = 10.0
PRECISION_VARIABLE = "ACCELERATE_MIXED_PRECISION"
PRECISIONS = ("no", "bf16")
CPU_VARIABLE = "ACCELERATE_USE_CPU"
"""Makes a launch with a GPU file run on CPUs."""


def start_accelerator() -> tuple[Accelerator, ProcessGroup, LaunchRequest]:
    """The Accelerator of this process and the request. Raises UserError if the run is not the requested one."""
    check_variables()
    _check_launcher()
    command = launcher_command(psutil.Process().parent())
    request = read_request(command)
    check_request(request)
    _check_environment(request)
    if command or ATTEMPT_VARIABLE in os.environ:
        _end_with_launcher()
    # Accelerate provides processes, device and precision. Its own engines fall back to DDP on CPUs; ours do not.
    for variable in ENGINE_VARIABLES:
        os.environ.pop(variable, None)
    on_cpu = request.device == "cpu" or is_set(CPU_VARIABLE) or not torch.cuda.is_available()
    if ATTEMPT_VARIABLE in os.environ:
        _init_process_group(on_cpu)
    accelerator = Accelerator(cpu=on_cpu, gradient_accumulation_steps=request.accumulation or 1)
    processes = ProcessGroup(accelerator.process_index, accelerator.num_processes, accelerator.local_process_index)
    check_launched(request, accelerator)
    return accelerator, processes, request


def _end_with_launcher() -> None:
    """Makes the kernel send SIGTERM to this process when its launcher ends, which may otherwise leave it behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _init_process_group(on_cpu: bool) -> None:
    """Initializes the default process group, with keys in the store that no other attempt uses.

    The launcher keeps one store for all attempts of `--max_restarts`; with the default keys, a restarted group would
    read the addresses of the processes before.
    """
    store, rank, world_size = next(dist.rendezvous("env://"))
    keys = dist.PrefixStore(f"attempt {os.environ[ATTEMPT_VARIABLE]}", store)
    if not on_cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if on_cpu else "nccl", store=keys, rank=rank, world_size=world_size)


def check_request(request: LaunchRequest) -> None:
    """Refuses a request that cannot be met, before a process group is initialized. Raises UserError."""
    where = request.source
    for variable, engine in ENGINE_VARIABLES.items():
        if is_set(variable) and request.engine != engine:
            raise UserError(f"{variable}: {where} does not ask for {engine.value}; ask by accelerate launch and a file")
    if request.engine is not None and request.engine not in SUPPORTED_ENGINES:
        raise UserError(
            f"{where}: engine {request.engine.value} is not supported; use one process, DDP, FSDP2 or DeepSpeed"
        )
    if request.engine in SETTINGS:
        _check_settings(where, request.settings, SETTINGS[request.engine])
    if request.device == "gpu" and not is_set(CPU_VARIABLE) and not torch.cuda.is_available():
        # Accelerate overwrites the variable when it starts one process.
        override = f"set {CPU_VARIABLE}=true" if request.engine in GPU_ENGINES else "add --cpu to accelerate launch"
        raise UserError(f"{where}: asks for GPUs, this machine has none; {override} to run on CPUs")
    if request.precision is not None and request.precision not in PRECISIONS:
        raise UserError(f"{where}: mixed_precision {request.precision} is not supported; use 'no' or bf16")


def _check_launcher() -> None:
    """Refuses variables that say this is one of several processes where nobody has started the others.

    Raises UserError.
    """
    left_over = [variable for variable in LAUNCHER_VARIABLES if variable in os.environ]
    advice = "unset them, or start with mtl-dist train, accelerate launch or torchrun"
    if left_over and not has_launcher():
        raise UserError(f"{', '.join(left_over)}: set, and no launcher has started this process; {advice}")
    if os.environ.get(AGENT_STORE_VARIABLE) != str(True):
        return
    address = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
    try:  # the launcher has a store there since before it started this process
        socket.create_connection(address, CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        place = "{}:{}".format(*address)
        raise UserError(f"MASTER_ADDR, MASTER_PORT: no launcher is at {place} any more; {advice}") from None
    except OSError:
        pass  # torch tries for longer, and says what it cannot reach


def _check_environment(request: LaunchRequest) -> None:
    """Refuses variables of Accelerate that would make another run than `request`. Raises UserError."""
    for variable in UNSUPPORTED_FLAGS:
        if is_set(variable):
            raise UserError(f"{variable}: is not supported; unset it")
    for variable, instead in UNSUPPORTED_VARIABLES.items():
        if os.environ.get(variable):
            raise UserError(f"{variable}: is not supported; {instead}")
    if request.source != ENVIRONMENT:
        return  # the launcher has set the others, from what `check_request` and `check_launched` look at
    precision = os.environ.get(PRECISION_VARIABLE, "no")
    if precision not in PRECISIONS:
        raise UserError(f"{PRECISION_VARIABLE}: {precision!r} is not supported; use no or bf16, or unset it")
    for variable, value in NO_COMPILATION.items():
        if os.environ.get(variable, value).lower() != value:
            raise UserError(f"{variable}: compilation is not supported; unset it")


def _check_settings(where: str, settings: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuses settings that are not among `supported`, which has the allowed values of each key. Raises UserError."""
    required = next(iter(supported))
    if required not in settings:
        raise UserError(f"{where}: {required}: missing; use {_alternatives(supported[required])}")
    for key, value in settings.items():
        if key not in supported:
            raise UserError(f"{where}: {key} is not supported; leave only {', '.join(supported)}")
        if value not in supported[key]:
            raise UserError(f"{where}: {key}: {value} is not supported; use {_alternatives(supported[key])}")


def _alternatives(values: Sequence[Any]) -> str:
    return " or ".join(str(value) for value in values)


def check_launched(request: LaunchRequest, accelerator: Accelerator) -> None:
    """Refuses a run with other processes, machines, precision or accumulation than requested, or with compilation.

    Raises UserError.
    """
    where, started = request.source, accelerator.num_processes
    if request.processes is not None and request.processes != started:
        hint = "; MULTI_CPU starts more than one only through mpirun, accelerate_configs/multi_cpu.yaml shows the way"
        raise UserError(
            f"{where}: asks for {request.processes} processes, {started} started"
            + (hint if request.engine == DistributedType.MULTI_CPU else "")
        )
    if request.engine in SETTINGS and started == 1:
        raise UserError(f"{where}: one process has nothing to share out; use at least 2, or a file for one")
    if request.machines is not None and request.machines > started:
        raise UserError(f"{where}: asks for {request.machines} machines, this run has {started} process(es)")
    for key, wanted in (("mixed_precision", request.precision), (ACCUMULATION, request.accumulation)):
        got = getattr(accelerator, key)
        if wanted is not None and wanted != got:
            raise UserError(f"{where}: asks for {key} {wanted}, got {got}")
    compilation = accelerator.state.dynamo_plugin
    if compilation is not None and compilation.backend != DynamoBackend.NO:
        raise UserError(f"{where}: dynamo_backend is not supported; leave it out")


def bf16_hint(accelerator: Accelerator) -> str | None:
    """A hint for a run in float32 on a CPU that multiplies bf16 matrices in hardware; None for other runs."""
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "no":
        return None
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    found = next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags), None)
    return f"this CPU has {found}: bf16 would pay; add --mixed_precision bf16 to accelerate launch" if found else None
