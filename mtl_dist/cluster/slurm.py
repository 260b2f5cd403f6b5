"""Slurm: the job file, its check against the cluster with sinfo, and its submission with sbatch."""

import shlex
import shutil
import subprocess
from pathlib import Path

from mtl_dist.cluster.job import Job, python, shell_exports
from mtl_dist.errors import UserError, did_you_mean
from mtl_dist.resources import ROOT

JOB_FILE = "job.sbatch"
BODY = ROOT / "launch" / "slurm_body.sh"


def job_file(job: Job) -> str:
    """Text of the job file."""
    options = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.processes * job.cpus,
        "gpus-per-node": job.gpus,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        # Sent to the job step with the launchers on each node, since srun forwards no signal but a kill.
        "signal": f"USR1@{job.save_seconds}",
        "open-mode": "append",
        "output": f'"{job.run}/slurm-%j.out"',
        # One job at a time writes to a run folder: a job with the same name waits until this one has ended.
        "dependency": "singleton",
    }
    lines = [f"#SBATCH --{option}={value}" for option, value in options.items() if value is not None]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in job.extra)]
    # Since Slurm 22.05, srun does not inherit --cpus-per-task from the allocation.
    each = ["--ntasks-per-node=1", f"--cpus-per-task={job.processes * job.cpus}", "--kill-on-bad-exit=0", "--wait=0"]
    container = []
    if job.image is not None:
        folders = dict.fromkeys(f"{folder}:{folder}" for folder in (job.run, ROOT, job.start))
        mounts = ",".join([*folders, *job.mounts])
        container = [
            f"--container-image={job.image}",
            f"--container-mounts={mounts}",
            f"--container-workdir={job.start}",
        ]
    words = {"run": str(job.run), "start": str(job.start), "recipe": str(job.recipe_path), "nodes": str(job.nodes)}
    part = job.node_command(python() if job.image is None else "python", ROOT, job.run)
    lists = {"each": each, "container": container, "part": part}
    return (
        "#!/usr/bin/env bash\n"
        f"# Written by launch/submit.py; `sbatch {shlex.quote(str(job.run / JOB_FILE))}` resumes the run.\n"
        + "".join(f"{line}\n" for line in lines)
        + "\n"
        + shell_exports(job.environment_with_threads())
        + "".join(f"{name}={shlex.quote(value)}\n" for name, value in words.items())
        + "".join(f"{name}=({' '.join(map(_quoted, values))})\n" for name, values in lists.items())
        + "\n"
        + BODY.read_text(encoding="utf-8")
    )


def _quoted(word: str) -> str:
    """`word` quoted for a bash array, where shellcheck takes a comma outside quotes for a mistake."""
    return f"'{word}'" if "," in word and shlex.quote(word) == word else shlex.quote(word)


def check_cluster(job: Job, dry: bool) -> None:
    """Raises UserError if sbatch is missing or the cluster has no such partition; a dry run needs no Slurm."""
    if shutil.which("sbatch") is None and not dry:
        raise UserError("sbatch: not found; submit where Slurm's commands are, or look with --dry-run")
    if job.partition is None or shutil.which("sinfo") is None:
        return
    try:
        known = sorted(set(_output(["sinfo", "--noheader", "--format=%R"]).split()))
    except UserError:
        if dry:  # Slurm's commands may be installed without a cluster
            return
        raise
    for name in job.partition.split(","):
        if name not in known:
            raise UserError(f"--partition: no {name} here{did_you_mean(name, known)}")


def submit(job: Job, path: Path) -> str:
    """Submits the job file `job.chain` times; returns the line to print. Raises UserError."""
    numbers: list[str] = []
    for _ in range(job.chain):
        after = [f"--dependency=singleton,afterany:{numbers[-1]}"] if numbers else []
        words = ["sbatch", "--parsable", *after, str(path), *(["chain"] if job.chain > 1 else [])]
        numbers.append(_output(words).partition(";")[0])
    return (
        f"submitted {', '.join(numbers)}: {path}; output in {job.run}/slurm-{numbers[0]}.out;"
        f" scancel {' '.join(numbers)} stops it"
    )


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise UserError(f"{command[0]}: {lines[-1].removeprefix(f'{command[0]}: ').removeprefix('error: ')}")
    return done.stdout.strip()
