"""Jobs on two nodes of a real Slurm: interrupted runs resume to the same state; exit codes are as documented."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm import NODES, Job, Slurm, cluster, slurm_unavailable, wait_until
from tests.distributed.launching import ROOT, launched
from tests.utils.tiny import tiny_recipe_file

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(slurm_unavailable() is not None, reason=f"no Slurm can be started: {slurm_unavailable()}"),
]
FLOAT64 = ("model.dtype=float64",)
SLOW = ROOT / "tests" / "cluster" / "long_steps"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with cluster() as up:
        yield up


class Runs:
    """Submits runs of one tiny recipe and reads their files."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm = slurm
        self.folder = folder
        self.recipe = str(tiny_recipe_file(folder))

    def submit(
        self, name: str, *arguments: str, seconds: float = 0.0, processes: int = 1, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs `launch/submit.py` for two nodes, with steps of `seconds` and environment variables for the run."""
        variables |= {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": f"{SLOW}:{ROOT}"}
        variables["MTL_DIST_TEST_STEP_SECONDS"] = str(seconds)
        environment = [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
        command = [sys.executable, "launch/submit.py", "--backend", "slurm", "--nodes", "2", *environment]
        command += ["--processes-per-node", str(processes), "--config", self.recipe, *FLOAT64]
        return subprocess.run(
            [*command, f"output_dir={self.folder / name}", *arguments],
            cwd=ROOT,
            env=self.slurm.environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    def submitted(self, name: str, *arguments: str, **how: Any) -> list[int]:
        """Submits a run and returns the job numbers."""
        done = self.submit(name, *arguments, **how)
        assert done.returncode == 0, done.stderr
        found = re.match(r"submitted ([\d, ]+):", done.stdout)
        assert found is not None, done.stdout
        return [int(number) for number in found[1].split(", ")]

    def ended(self, name: str, number: int, state: str = "COMPLETED", seconds: float = 600) -> Job:
        """Waits until the job has ended and returns it; fails if it has not ended in `state`."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        job = self.slurm.wait(number, *ends, seconds=seconds)
        assert job.state == state, self.output(name)
        return job

    def output(self, name: str) -> str:
        return "".join(path.read_text() for path in sorted((self.folder / name).glob("slurm-*.out")))

    def steps(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in map(json.loads, lines) if "train/loss" in line]

    def wait_for_steps(self, name: str, count: int) -> None:
        wait_until(lambda: len(self.steps(name)) >= count or None, f"{count} steps of {name}: {self.output(name)}")

    def summary(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name / "summary.json").read_text())


@pytest.fixture(scope="module")
def runs(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(slurm, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def uninterrupted(runs: Runs) -> str:
    """SHA-256 of the final state of an uninterrupted run on two nodes."""
    (number,) = runs.submitted("uninterrupted")
    runs.ended("uninterrupted", number)
    return runs.summary("uninterrupted")["state_sha256"]


def require_same_end(runs: Runs, name: str, uninterrupted: str) -> None:
    assert [line["step"] for line in runs.steps(name)] == list(range(1, 13))
    assert runs.summary(name)["state_sha256"] == uninterrupted


@pytest.mark.parametrize("processes", [1, 2])
def test_two_nodes_give_the_losses_of_one_process(runs: Runs, processes: int) -> None:
    name, alone = f"nodes of {processes}", runs.folder / f"alone {processes}"
    (number,) = runs.submitted(name, processes=processes)
    launched("launch/train.py", "--config", runs.recipe, *FLOAT64, f"output_dir={alone}")
    assert runs.ended(name, number).code == 0
    one, several = json.loads((alone / "summary.json").read_text()), runs.summary(name)
    assert several["world_size"] == 2 * processes
    assert several["digests"] == one["digests"] | {"recipe": several["digests"]["recipe"]}  # its output_dir differs
    assert set(several["params_sha256_by_rank"]) == {several["params_sha256"]}
    losses = [json.loads(line).get("train/loss") for line in (alone / "metrics.jsonl").read_text().splitlines()]
    expected = [loss for loss in losses if loss is not None]
    assert [line["train/loss"] for line in runs.steps(name)] == pytest.approx(expected, rel=1e-9)


def test_a_run_stopped_by_its_time_limit_resumes_to_the_same_state(runs: Runs, uninterrupted: str) -> None:
    """It stops twice or more: Slurm checks limits every 30 s, so a start lasts 66 to 96 s, or 5 of 12 steps at most."""
    (number,) = runs.submitted("limited", "--time", "2", seconds=18)
    assert runs.ended("limited", number).restarts >= 2
    output = runs.output("limited")
    assert output.count("stopped; requeued") >= 2
    assert len(set(re.findall(r"stopped by SIGUSR1 after step (\d+) of 12", output))) >= 2
    require_same_end(runs, "limited", uninterrupted)


def test_a_preempted_run_resumes_to_the_same_state(runs: Runs, uninterrupted: str) -> None:
    (number,) = runs.submitted("preempted", seconds=2)
    runs.wait_for_steps("preempted", 2)
    options = ("--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    urgent = int(runs.slurm.run("sbatch", *options, "--wrap=true"))
    runs.slurm.wait(urgent, "COMPLETED")
    assert runs.ended("preempted", number).restarts == 1
    assert re.search(r"stopped by SIGTERM after step \d+ of 12", runs.output("preempted"))
    require_same_end(runs, "preempted", uninterrupted)


@pytest.mark.parametrize("node", NODES)
def test_a_run_whose_node_fails_resumes_to_the_same_state(runs: Runs, uninterrupted: str, node: str) -> None:
    """The first node is the one that runs the batch script."""
    name = f"without {node}"
    (number,) = runs.submitted(name, "checkpoint.every_steps=3", seconds=2)
    runs.wait_for_steps(name, 4)
    runs.slurm.kill_node(node)
    runs.slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")
    runs.slurm.wait(number, "PENDING")
    runs.slurm.start_node(node)
    assert runs.ended(name, number).restarts == 1
    assert f"from {runs.folder / name / 'checkpoints'}/step-" in runs.output(name)
    require_same_end(runs, name, uninterrupted)


def test_a_chain_of_jobs_resumes_to_the_same_state(runs: Runs, uninterrupted: str) -> None:
    first, second, third = runs.submitted("chained", "--chain", "3", seconds=2)
    runs.wait_for_steps("chained", 2)
    assert runs.slurm.job(second).fields["Dependency"].startswith(("singleton", "afterany"))
    runs.slurm.run("scancel", "--signal=USR1", str(first))
    assert runs.ended("chained", first, "FAILED").code == 75
    runs.ended("chained", second)
    runs.ended("chained", third, "CANCELLED")  # by the second job, which has finished the run
    require_same_end(runs, "chained", uninterrupted)


def test_a_finished_run_ends_at_once(runs: Runs, uninterrupted: str) -> None:
    folder = runs.folder / "uninterrupted"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    number = int(runs.slurm.run("sbatch", "--parsable", str(folder / "job.sbatch")))
    assert runs.ended("uninterrupted", number).code == 0
    assert "finished already" in runs.output("uninterrupted")
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert {path for path in after if after[path] != before.get(path)} <= {folder, folder / f"slurm-{number}.out"}
    again = runs.submit("uninterrupted")
    assert (again.returncode, again.stdout) == (0, f"finished already: {folder / 'summary.json'}\n")


def test_an_error_in_the_data_gives_exit_code_2(runs: Runs) -> None:
    (number,) = runs.submitted("bad data", "tasks.mood.label=feeling")
    job = runs.ended("bad data", number, "FAILED")
    assert (job.code, job.restarts) == (2, 0)
    lines = [line for line in runs.output("bad data").splitlines() if line.startswith("error:")]
    (line,) = lines
    assert line.startswith("error: tasks.mood: ")
    assert line.endswith("mood.train.json: no column 'feeling'; choose from text, label")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_crash_of_one_rank_gives_exit_code_1(runs: Runs, rank: int) -> None:
    name = f"crashed {rank}"
    (number,) = runs.submitted(name, MTL_DIST_TEST_CRASHES=str(rank))
    job = runs.ended(name, number, "FAILED")
    assert (job.code, job.restarts) == (1, 0)
    assert "a mistake of the program's" in runs.output(name)


def test_scancel_leaves_no_process_and_does_not_requeue(runs: Runs) -> None:
    (number,) = runs.submitted("cancelled", seconds=2)
    runs.wait_for_steps("cancelled", 2)
    assert len(runs.slurm.of_job(number)) >= 6  # on each node a launcher, its process and their parent
    runs.slurm.run("scancel", str(number))
    assert runs.ended("cancelled", number, "CANCELLED").restarts == 0
    wait_until(lambda: not runs.slurm.of_job(number) or None, f"{runs.slurm.of_job(number)}")
    assert (runs.folder / "cancelled" / "checkpoints").is_dir()  # it had time to save


def test_a_run_folder_that_a_node_does_not_see_gives_one_error_line(runs: Runs) -> None:
    folder = runs.slurm.folder / "apart" / "run"
    where = ("--partition", "apart", "--sbatch=--nodelist=127.0.0.[3-4]")
    (number,) = runs.submitted("apart", *where, f"output_dir={folder}")
    job = runs.slurm.wait(number, "FAILED", "COMPLETED")
    assert (job.state, job.code) == ("FAILED", 2)
    lines = [line for path in folder.glob("slurm-*") for line in path.read_text().splitlines()]
    what = f"node 127.0.0.4 does not see what node 127.0.0.3 has written to {folder}; all nodes must have it in common"
    assert [line for line in lines if line.startswith("error:")] == [f"error: output_dir: {what}"]


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--partition=mian", "error: --partition: no mian here; did you mean main?"),
        (
            "--sbatch=--mem=9T",
            "error: sbatch: Batch job submission failed: Requested node configuration is not available",
        ),
    ],
)
def test_options_that_slurm_refuses_give_one_error_line(runs: Runs, option: str, line: str) -> None:
    done = runs.submit("refused", option)
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", [line])
