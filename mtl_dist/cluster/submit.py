"""Submits a checked job to a backend, or prints what would be submitted."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mtl_dist.cluster import job as jobs
from mtl_dist.cluster import kubernetes, local, skypilot, slurm
from mtl_dist.cluster.job import Job
from mtl_dist.cluster.node_agent import finished
from mtl_dist.io import write_text_atomically


class _Backend(NamedTuple):
    """A cluster's job file and the command that takes it."""

    file_name: str
    job_file: Callable[[Job], str]
    """The text of the job file."""
    submit: Callable[[Job, Path], str]
    """Submits the job file at a path; returns a message for the user."""


BACKENDS = {
    "slurm": _Backend(slurm.JOB_FILE, slurm.job_file, slurm.submit),
    "kubernetes": _Backend(kubernetes.JOB_FILE, kubernetes.job_file, kubernetes.submit),
    "skypilot": _Backend(skypilot.JOB_FILE, skypilot.job_file, skypilot.submit),
}


def submit_job(backend: str, job: Job, dry_run: bool) -> int:
    """Submits `job`, or runs it here where `backend` is local; returns the exit code.

    Raises UserError for a job that cannot run, and TrainingError.
    """
    jobs.check(job)
    if backend == "local":
        return local.run(job, dry_run)
    if backend == "slurm":
        slurm.check_cluster(job, dry_run)
    cluster = BACKENDS[backend]
    path, text = job.run / cluster.file_name, cluster.job_file(job)
    if dry_run:
        print(f"would write and submit {path}:", file=sys.stderr)
        print(text, end="")
        return 0
    if finished(job.run):
        jobs.require_same(job)
        return 0
    jobs.write_recipe(job)
    write_text_atomically(path, text)
    print(cluster.submit(job, path))
    return 0
