"""A job for a cluster: a checked recipe and the machines and options to run it with. Does not import torch."""

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mtl_dist.config.recipe import Recipe
from mtl_dist.errors import UserError
from mtl_dist.io import write_text_atomically
from mtl_dist.resources import ENGINES, ROOT
from mtl_dist.run_layout import SUMMARY

"""Root of this repository."""
SAVE_SECONDS = 120
"""Seconds for a run to save and end after it is asked to stop; a short time limit leaves fewer."""
RECIPE_FILE = "job.yaml"
"""Name of the resolved recipe beside the job file in the run folder; the run itself writes `recipe.yaml`."""
WORKDIR_OF_IMAGE = PurePosixPath("/app")
"""Folder of this repository in the image of the Dockerfile."""
_NAME = re.compile(r"[\w@%.,:+-]+")
_VARIABLE = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_GPUS = re.compile(r"(?:([\w.-]+):)?([1-9]\d*)")


@dataclass(frozen=True)
class Job:
    """A run to submit, as given on the command line of launch/submit.py."""

    recipe: Recipe
    resolved: str
    """The recipe as YAML with every key."""
    start: Path
    """Folder to which relative paths in the recipe refer."""
    nodes: int
    processes: int
    """Processes on each node."""
    gpus: str | None
    """GPUs on each node, as COUNT or TYPE:COUNT; None runs on CPUs."""
    cpus: int
    """CPU cores for each process."""
    engine_file: str
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    image: str | None = None
    mounts: tuple[str, ...] = ()
    """SOURCE:TARGET folders for the container."""
    volume: str | None = None
    """SOURCE:PATH of the volume that holds the run folder, for nodes without a shared disk."""
    environment: tuple[str, ...] = ()
    """Variables of the run, as NAME=VALUE."""
    extra: tuple[str, ...] = ()
    """More options for the backend's submit command."""
    chain: int = 1
    """Number of jobs submitted at once, each starting after the one before it."""

    @property
    def run(self) -> Path:
        """The run folder on this machine."""
        return Path(os.path.normpath(self.start / self.recipe.output_dir))

    @property
    def recipe_path(self) -> Path:
        return self.run / RECIPE_FILE

    @property
    def name(self) -> str:
        """A name of letters, digits and hyphens, different for every run folder."""
        words = re.sub("[^a-z0-9]+", "-", self.run.name.lower()).strip("-")[:30].strip("-")
        return f"mtl-{words}-{hashlib.sha256(str(self.run).encode()).hexdigest()[:8]}"

    @property
    def save_seconds(self) -> int:
        """Seconds before the time limit at which the run is asked to stop."""
        return SAVE_SECONDS if self.time is None else max(10, min(SAVE_SECONDS, seconds_of(self.time) // 5))

    @property
    def gpu_type(self) -> str | None:
        """The TYPE in `gpus`, or None."""
        return self.gpus.rpartition(":")[0] or None if self.gpus else None

    def node_command(self, python: str, root: PurePosixPath | Path, run: PurePosixPath | Path) -> list[str]:
        """Command that runs one node's processes, without the arguments that only the node knows (rank, host)."""
        engine_file = self.engine_file if root == ROOT else str(root / Path(self.engine_file).relative_to(ROOT))
        return [
            *(python, str(root / "launch" / "on_node.py")),
            *("--run", str(run), "--engine-file", engine_file),
            *("--nodes", str(self.nodes), "--processes", str(self.processes)),
            *("--save-seconds", str(self.save_seconds)),
        ]

    def environment_with_threads(self) -> dict[str, str]:
        """Variables of the run, with the number of threads: floating-point sums depend on it."""
        pairs = (variable.partition("=") for variable in self.environment)
        return {"OMP_NUM_THREADS": str(self.cpus)} | {name: value for name, _, value in pairs}


def shell_exports(variables: dict[str, str]) -> str:
    """Shell lines that export `variables`."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def seconds_of(time: str) -> int:
    """Seconds of a time limit in Slurm's format: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S. Raises UserError."""
    match = _TIME.fullmatch(time)
    if match:
        days, *rest = (None if part is None else int(part) for part in match.groups())
        first, second, third = rest
        assert first is not None
        if days is not None:
            total = 86400 * days + 3600 * first + 60 * (second or 0) + (third or 0)
        elif third is not None:
            total = 3600 * first + 60 * (second or 0) + third
        else:
            total = 60 * first + (second or 0)
        if total > 0:
            return total
    raise UserError(f"--time: {time!r} is no time limit; write MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS")


def check(job: Job) -> None:
    """Raises UserError for a job that no backend can run."""
    for option, count in {
        "nodes": job.nodes,
        "processes-per-node": job.processes,
        "cpus-per-process": job.cpus,
        "chain": job.chain,
    }.items():
        if count < 1:
            raise UserError(f"--{option}: {count} is not at least 1")
    for option, name in {"partition": job.partition, "account": job.account, "qos": job.qos}.items():
        if name is not None and not _NAME.fullmatch(name):
            raise UserError(f"--{option}: {name!r} is not a name")
    for variable in job.environment:
        if not _VARIABLE.fullmatch(variable):
            raise UserError(f"--env: {variable!r} is not NAME=VALUE")
    if job.time is not None:
        seconds_of(job.time)
    _check_folder(str(job.run))
    config = read_engine_file("--engine-file", job.engine_file)
    check_engine_file("--engine-file", job.engine_file, config, job.nodes, job.nodes * job.processes)
    checkpoint = job.recipe.checkpoint
    if checkpoint.resume != "auto":
        raise UserError("checkpoint.resume: never; a job that starts again would begin anew each time; use auto")
    if checkpoint.every_steps is None and checkpoint.every_minutes is None:
        raise UserError("checkpoint.every_minutes: null, and so is every_steps; a job that is stopped could not resume")


def processes_of(gpus: str | None, processes: int | None) -> int:
    """Processes on each node: one per GPU, or `processes` on CPUs. Raises UserError."""
    if (gpus is None) == (processes is None):
        raise UserError("give one of --gpus-per-node and --processes-per-node (on CPUs)")
    if gpus is None:
        assert processes is not None
        return processes
    match = _GPUS.fullmatch(gpus)
    if match is None:
        raise UserError(f"--gpus-per-node: {gpus!r} is not COUNT or TYPE:COUNT")
    return int(match[2])


def engine_file_for(nodes: int, processes: int, gpus: str | None) -> str:
    """The file in accelerate_configs for data parallel training (DDP) on these devices."""
    device = "gpu" if gpus else "cpu"
    several = "multi_node_" if nodes > 1 else "multi_" if processes > 1 else ""
    return str(ENGINES / f"{several}{device}.yaml")


def _check_folder(run: str) -> None:
    if not run.isprintable() or set('%"\\') & set(run):
        raise UserError(f"output_dir: {run!r} has characters that a job file cannot name; use others")


def read_engine_file(option: str, file: str) -> dict[str, Any]:
    """The content of an engine file. Raises UserError, which begins with `option`, where it is none."""
    try:
        config = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        words = getattr(error, "strerror", None) or "is not YAML"
        raise UserError(f"{option}: {file}: {words}") from error
    if not isinstance(config, dict) or "distributed_type" not in config:
        raise UserError(f"{option}: {file}: is not a configuration of accelerate")
    return config


def check_engine_file(option: str, file: str, config: Mapping[str, Any], nodes: int, processes: int) -> None:
    """Raises UserError where the engine file is for other numbers of machines, or of processes on all machines."""
    if str(config["distributed_type"]) in ("NO", "False") and processes > 1:
        raise UserError(f"{option}: {file}: is for one process, {processes} are asked for")
    if nodes > 1 and config.get("num_machines", 1) == 1:
        hint = "; use accelerate_configs/multi_node_*.yaml"
        raise UserError(f"{option}: {file}: is for one machine, {nodes} are asked for{hint}")


def python() -> str:
    """Absolute path of this interpreter; links are not resolved, so a virtual environment stays one."""
    return str(Path(sys.executable).absolute())


def require_in_repository(job: Job, backend: str) -> None:
    """Raises UserError for an engine file outside this repository, of which other machines have only a copy."""
    if not Path(job.engine_file).is_relative_to(ROOT):
        raise UserError(f"--engine-file: {job.engine_file}: {backend} has only the files of this repository")


def run_folder_in_container(job: Job, backend: str, workdir: PurePosixPath) -> PurePosixPath:
    """Path of the run folder in the container; it must be on the volume. Raises UserError."""
    source, _, path = (job.volume or "").rpartition(":")
    if not source or not path.startswith("/"):
        raise UserError(f"--volume SOURCE:PATH: {backend} needs one, or checkpoints are lost with the machine")
    run = workdir / job.recipe.output_dir
    if not run.is_relative_to(path):
        raise UserError(f"output_dir: {run} is not below {path}, where --volume is; checkpoints would be lost")
    return run


def write_recipe(job: Job) -> None:
    """Creates the run folder and writes the resolved recipe to it. Raises UserError."""
    try:
        job.run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: cannot make {job.run}: {error.strerror}") from error
    write_text_atomically(job.recipe_path, job.resolved)


def require_same(job: Job) -> None:
    """Raises UserError if the finished run in the run folder is of another recipe."""
    summary = json.loads((job.run / SUMMARY).read_text(encoding="utf-8"))
    if summary["digests"]["recipe"] != hashlib.sha256(job.resolved.encode()).hexdigest():
        raise UserError(f"output_dir: {job.run} has a finished run of another recipe; name another folder")


def as_yaml(*documents: Mapping[str, Any]) -> str:
    """YAML of `documents`, with text of several lines in block style."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
