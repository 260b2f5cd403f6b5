"""Sends a recipe to a cluster: `launch/submit.py --backend slurm --nodes 2 --gpus-per-node 4 --config RECIPE`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from mtl_dist.cluster import job as jobs
from mtl_dist.cluster import kubernetes, local, skypilot, slurm
from mtl_dist.cluster.job import Job
from mtl_dist.cluster.node_agent import finished
from mtl_dist.config.load import parse, resolved_yaml
from mtl_dist.errors import TrainingError, UserError, did_you_mean
from mtl_dist.io import write_text_atomically


class _Files(NamedTuple):
    """How a backend is handed a run."""

    name: str
    text: Callable[[Job], str]
    submit: Callable[[Job, Path], str]
    """Given what is at a path by now; returns what to say."""


FILES = {
    "slurm": _Files(slurm.JOB_FILE, slurm.job_file, slurm.submit),
    "kubernetes": _Files(kubernetes.JOB_FILE, kubernetes.job_file, kubernetes.submit),
    "skypilot": _Files(skypilot.JOB_FILE, skypilot.job_file, skypilot.submit),
}
ONLY = {
    "time": ("slurm",),
    "partition": ("slurm",),
    "account": ("slurm",),
    "qos": ("slurm",),
    "chain": ("slurm",),
    "sbatch": ("slurm",),
    "container_mounts": ("slurm",),
    "container_image": ("slurm", "kubernetes", "skypilot"),
    "volume": ("kubernetes", "skypilot"),
}
"""Backends that know an option; the others refuse it."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}")


def main(arguments: Sequence[str]) -> int:
    """Submits what the command line asks for; returns the exit code. An error of ours is one line."""
    try:
        given = _parse(arguments)
        job = _job(given)
        jobs.check(job)
        return _submit(given.backend, job, given.dry_run)
    except (UserError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _submit(backend: str, job: Job, dry: bool) -> int:
    if backend == "local":
        return local.run(job, dry)
    if backend == "slurm":
        slurm.check_cluster(job, dry)
    files = FILES[backend]
    path, text = job.run / files.name, files.text(job)
    if dry:
        print(f"would write and submit {path}:", file=sys.stderr)
        print(text, end="")
        return 0
    if finished(job.run):
        jobs.require_same(job)
        return 0
    jobs.write_recipe(job)
    write_text_atomically(path, text)
    print(files.submit(job, path))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="launch/submit.py",
        allow_abbrev=False,
        description="Sends a recipe to a cluster, or runs it here. docs/cluster.md says how jobs go on and end.",
    )
    add = parser.add_argument
    add("--backend", required=True, choices=["slurm", "kubernetes", "skypilot", "local"])
    add("--nodes", type=int, default=1, help="machines (1)")
    add("--gpus-per-node", metavar="[TYPE:]COUNT", help="one process for each GPU")
    add("--processes-per-node", type=int, metavar="COUNT", help="on CPUs")
    add("--cpus-per-process", type=int, metavar="COUNT", default=1, help="cores and threads of each (1)")
    add(
        "--engine-file",
        metavar="FILE",
        help="accelerate's; the one of accelerate_configs for DDP is taken if none is named",
    )
    add("--env", metavar="NAME=VALUE", action="append", default=[], help="variable of the run; several times")
    add("--time", metavar="LIMIT", help="[slurm] the job's time limit, as sbatch takes it")
    add("--partition", help="[slurm]")
    add("--account", help="[slurm]")
    add("--qos", help="[slurm]")
    add("--chain", type=int, metavar="JOBS", help="[slurm] so many jobs, each after the last, instead of requeueing")
    add("--sbatch", metavar="OPTION", action="append", help="[slurm] any other of sbatch, e.g. --sbatch=--mem=64G")
    add("--container-image", metavar="IMAGE", help="[slurm with Pyxis, kubernetes, skypilot]")
    add(
        "--container-mounts",
        metavar="SOURCE:TARGET",
        action="append",
        help="[slurm] besides run, start and code folder",
    )
    add("--volume", metavar="SOURCE:PATH", help="[kubernetes: a claim, skypilot: a bucket] what keeps the run folder")
    add("--dry-run", action="store_true", help="print what would be submitted")
    add("--config", metavar="FILE", action="append", default=[], help="recipe; several are merged")
    add("overrides", metavar="key=value", nargs="*", help="of the recipe")
    given, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        options = [action.option_strings[0] for action in parser._actions if action.option_strings]
        parser.error(f"{unknown[0]}: unknown option{did_you_mean(unknown[0], options)}")
    for option, backends in ONLY.items():
        if getattr(given, option) is not None and given.backend not in backends:
            name = option.replace("_", "-")
            parser.error(f"--{name}: {given.backend} does not know it, only {' and '.join(backends)}")
    return given


def _job(given: argparse.Namespace) -> Job:
    """What is submitted, its recipe checked as the run would."""
    files = [word for file in given.config for word in ("--config", file)]
    recipe = parse([*files, *given.overrides]).recipe
    processes = jobs.processes_of(given.gpus_per_node, given.processes_per_node)
    engine_file = given.engine_file or jobs.engine_file_for(given.nodes, processes, given.gpus_per_node)
    return Job(
        recipe=recipe,
        resolved=resolved_yaml(recipe),
        start=Path.cwd(),
        nodes=given.nodes,
        processes=processes,
        gpus=given.gpus_per_node,
        cpus=given.cpus_per_process,
        engine_file=str(Path(engine_file).absolute()),
        time=given.time,
        partition=given.partition,
        account=given.account,
        qos=given.qos,
        image=given.container_image,
        mounts=tuple(given.container_mounts or ()),
        volume=given.volume,
        environment=tuple(given.env),
        extra=tuple(given.sbatch or ()),
        chain=given.chain or 1,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
