"""`mtl-dist submit`: sends a recipe to a cluster, or runs it here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mtl_dist.cli.recipe_words import METAVAR, recipe_arguments
from mtl_dist.errors import UserError

BACKENDS_OF_OPTIONS = {
    "time": ("slurm",),
    "partition": ("slurm",),
    "account": ("slurm",),
    "qos": ("slurm",),
    "chain": ("slurm",),
    "sbatch": ("slurm",),
    "container-mounts": ("slurm",),
    "container-image": ("slurm", "kubernetes", "skypilot"),
    "volume": ("kubernetes", "skypilot"),
}
"""Backends that know an option; the others refuse it."""
Text = str | None
Texts = list[str] | None


def submit(
    backend: Annotated[Literal["slurm", "kubernetes", "skypilot", "local"], typer.Option(show_default=False)],
    words: Annotated[
        Texts, typer.Argument(metavar=METAVAR, show_default=False, help="Recipe files, and values that replace theirs.")
    ] = None,
    nodes: Annotated[int, typer.Option(metavar="COUNT", help="Machines.")] = 1,
    gpus_per_node: Annotated[
        Text, typer.Option(metavar="[TYPE:]COUNT", help="GPUs, with one process for each.")
    ] = None,
    processes_per_node: Annotated[int | None, typer.Option(metavar="COUNT", help="Processes on CPUs.")] = None,
    cpus_per_process: Annotated[int, typer.Option(metavar="COUNT", help="Cores and threads of each process.")] = 1,
    engine_file: Annotated[
        Text, typer.Option(metavar="FILE", help="File of accelerate. Default: that of accelerate_configs for DDP.")
    ] = None,
    env: Annotated[Texts, typer.Option(metavar="NAME=VALUE", help="Variable of the run; several times.")] = None,
    time: Annotated[Text, typer.Option(metavar="LIMIT", help="[slurm] Time limit of the job, as sbatch's.")] = None,
    partition: Annotated[Text, typer.Option(metavar="NAME", help="[slurm] As sbatch's.")] = None,
    account: Annotated[Text, typer.Option(metavar="NAME", help="[slurm] As sbatch's.")] = None,
    qos: Annotated[Text, typer.Option(metavar="NAME", help="[slurm] As sbatch's.")] = None,
    chain: Annotated[
        int | None, typer.Option(metavar="JOBS", help="[slurm] So many jobs, each after the last, without requeueing.")
    ] = None,
    sbatch: Annotated[
        Texts, typer.Option(metavar="OPTION", help="[slurm] Any other option of sbatch, e.g. --sbatch=--mem=64G.")
    ] = None,
    container_image: Annotated[
        Text, typer.Option(metavar="IMAGE", help="[slurm with Pyxis, kubernetes, skypilot]")
    ] = None,
    container_mounts: Annotated[
        Texts, typer.Option(metavar="SOURCE:TARGET", help="[slurm] Besides run, start and code folder.")
    ] = None,
    volume: Annotated[
        Text,
        typer.Option(
            metavar="SOURCE:PATH", help="[kubernetes: a claim, skypilot: a bucket] Storage that keeps the run folder."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted.")] = False,
    config: Annotated[Texts, typer.Option(metavar="FILE", help="Recipe file; several are merged.")] = None,
) -> int:
    """Send a recipe to a cluster, or run it here with restarts."""
    options: dict[str, Any] = {
        "time": time,
        "partition": partition,
        "account": account,
        "qos": qos,
        "chain": chain,
        "sbatch": sbatch,
        "container-mounts": container_mounts,
        "container-image": container_image,
        "volume": volume,
    }
    _refuse_options_of_others(backend, options)
    from mtl_dist.cluster import job as jobs
    from mtl_dist.cluster.submit import submit_job
    from mtl_dist.config.load import parse, resolved_yaml

    files = [word for file in config or () for word in ("--config", file)]
    recipe = parse([*files, *recipe_arguments(words or ())]).recipe
    processes = jobs.processes_of(gpus_per_node, processes_per_node)
    engine_file = engine_file or jobs.engine_file_for(nodes, processes, gpus_per_node)
    job = jobs.Job(
        recipe=recipe,
        resolved=resolved_yaml(recipe),
        start=Path.cwd(),
        nodes=nodes,
        processes=processes,
        gpus=gpus_per_node,
        cpus=cpus_per_process,
        engine_file=str(Path(engine_file).absolute()),
        time=time,
        partition=partition,
        account=account,
        qos=qos,
        image=container_image,
        mounts=tuple(container_mounts or ()),
        volume=volume,
        environment=tuple(env or ()),
        extra=tuple(sbatch or ()),
        chain=1 if chain is None else chain,
    )
    return submit_job(backend, job, dry_run)


def _refuse_options_of_others(backend: str, options: Mapping[str, Any]) -> None:
    """Raises UserError for an option that `backend` does not know."""
    for option, backends in BACKENDS_OF_OPTIONS.items():
        if options[option] is not None and backend not in backends:
            raise UserError(f"command line: --{option}: {backend} does not know it, only {' and '.join(backends)}")
