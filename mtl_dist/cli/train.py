"""`mtl-dist train`: starts `accelerate launch` with an engine file and waits for the run."""

import shlex
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mtl_dist.cli.engine_option import default_engine, engine_file
from mtl_dist.cli.recipe_words import RecipeWords, recipe_arguments
from mtl_dist.environment import cache_root, check_variables, prepare_home
from mtl_dist.errors import UserError
from mtl_dist.resources import TRAIN_SCRIPT, engine_names

if TYPE_CHECKING:
    from mtl_dist.cluster.launch_command import Launch

DEFAULT_PORT = 29500
"""Where the processes of several machines meet, as for `accelerate launch`; those of one machine take a free port."""
_ON_SEVERAL = "With several machines"


def train(
    words: RecipeWords,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help=f"One of {', '.join(engine_names())}, or a file of accelerate. Default: gpu where nvidia-smi lists a"
            " GPU, else cpu.",
            autocompletion=engine_names,
        ),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(metavar="N", help="Processes on all machines together. Default: the engine file's.")
    ] = None,
    mixed_precision: Annotated[Literal["no", "bf16"] | None, typer.Option(help="Default: the engine file's.")] = None,
    gradient_accumulation_steps: Annotated[
        int | None, typer.Option(metavar="K", help="Micro-steps per step; the batch size stays the recipe's.")
    ] = None,
    num_machines: Annotated[
        int | None, typer.Option(metavar="M", help="Each runs this command. Default: the engine file's.")
    ] = None,
    machine_rank: Annotated[int, typer.Option(metavar="R", help=f"{_ON_SEVERAL}: this one's, from 0.")] = 0,
    main_process_ip: Annotated[
        str | None, typer.Option(metavar="HOST", help=f"{_ON_SEVERAL}: the one of rank 0.")
    ] = None,
    main_process_port: Annotated[
        int | None, typer.Option(metavar="P", help=f"{_ON_SEVERAL}: a free port of rank 0; default {DEFAULT_PORT}.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command line that starts the launcher, and start nothing.")
    ] = False,
) -> int:
    """Train a recipe; the same command resumes it after a stop."""
    from mtl_dist.cluster.job import SAVE_SECONDS
    from mtl_dist.cluster.node_agent import StopSignals, run_node
    from mtl_dist.config.load import parse

    arguments = recipe_arguments(words)
    command = parse(arguments)  # its mistakes are reported before anything is started
    check_variables()
    prepare_home(cache_root(command.recipe.data.cache_dir))
    default = default_engine(num_processes) if engine is None else None
    launch = launch_of(
        arguments,
        engine or (default.name if default else ""),
        num_processes=num_processes,
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation_steps,
        num_machines=num_machines,
        machine_rank=machine_rank,
        main_process_ip=main_process_ip,
        main_process_port=main_process_port,
    )
    if default is not None:
        print(f"engine: {default.name} ({default.reason}); --engine chooses another", file=sys.stderr)
    if dry_run:
        print(shlex.join(launch.command()))
        return 0
    stop_signals = StopSignals()
    stop_signals.listen()
    return run_node(launch, stop_signals, alone=True, save_seconds=SAVE_SECONDS)


def launch_of(
    arguments: list[str],
    engine: str,
    *,
    num_processes: int | None = None,
    mixed_precision: str | None = None,
    gradient_accumulation_steps: int | None = None,
    num_machines: int | None = None,
    machine_rank: int = 0,
    main_process_ip: str | None = None,
    main_process_port: int | None = None,
) -> "Launch":
    """This machine's launch of `launch/train.py` with `arguments`. Raises UserError."""
    from mtl_dist.cluster.job import check_engine_file, read_engine_file
    from mtl_dist.cluster.launch_command import Launch

    file = str(engine_file(engine))
    config = read_engine_file("--engine", file)
    processes = int(config.get("num_processes") or 1) if num_processes is None else num_processes
    machines = int(config.get("num_machines") or 1) if num_machines is None else num_machines
    for option, value in {
        "num-processes": processes,
        "num-machines": machines,
        "gradient-accumulation-steps": gradient_accumulation_steps,
    }.items():
        if value is not None and value < 1:
            raise UserError(f"--{option}: {value} is not at least 1")
    check_engine_file("--engine", file, config, machines, processes)
    _check_machines(processes, machines, machine_rank, main_process_ip)
    if config["distributed_type"] == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise UserError(f"--engine: {engine} needs DeepSpeed; install mtl_dist[deepspeed]")
    options = [] if mixed_precision is None else ["--mixed_precision", mixed_precision]
    if gradient_accumulation_steps is not None:
        options += ["--gradient_accumulation_steps", str(gradient_accumulation_steps)]
    per_machine = processes // machines
    options += _threads(config, per_machine)
    port = main_process_port if main_process_port is not None else DEFAULT_PORT if machines > 1 else 0
    host = main_process_ip or ""
    return Launch(TRAIN_SCRIPT, tuple(arguments), file, machines, per_machine, machine_rank, host, port, tuple(options))


def _check_machines(processes: int, machines: int, rank: int, host: str | None) -> None:
    """Raises UserError where the machines do not fit together."""
    if processes % machines:
        raise UserError(f"--num-processes: {processes} cannot be divided among {machines} machines")
    if not 0 <= rank < machines:
        raise UserError(f"--machine-rank: {rank} is not among 0 to {machines - 1}; --num-machines is {machines}")
    if machines > 1 and host is None:
        raise UserError("--main-process-ip: missing; name the machine of rank 0")


def _threads(config: dict[str, Any], processes: int) -> list[str]:
    """The launcher's option for the number of threads that it would choose itself, with a warning of several lines."""
    import os

    import psutil

    if not config.get("use_cpu") or "OMP_NUM_THREADS" in os.environ:
        return []
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return ["--num_cpu_threads_per_process", str(max(1, cores // processes))]
