import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import submit
from mtl_dist.cluster import slurm
from mtl_dist.cluster.job import seconds_of
from mtl_dist.config.load import parse
from mtl_dist.errors import UserError

ROOT = Path(__file__).parents[3]
RECIPE = """
output_dir: runs/x
tasks: {topic: {path: hub/topic}}
phases: [{name: all, train: [all], epochs: 2}]
"""
MULTI_NODE = "use accelerate_configs/multi_node_*.yaml"
ON_CPUS = ("--backend", "slurm", "--processes-per-node", "2")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder with a recipe in it; no command of a cluster is on the path."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "bin").mkdir()
    for name in ("bash", "env", "find", "sort", "tail", "head", "grep", "mktemp", "rm", "id", "sleep"):
        command = shutil.which(name)
        assert command is not None
        (tmp_path / "bin" / name).symlink_to(command)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def written(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The job file that a dry run prints."""
    code = submit.main([*arguments, "--dry-run", "--config", "recipe.yaml"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert submit.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize("more", [(), ("--nodes", "2", "--container-image", "image", "--chain", "3")])
def test_a_job_file_is_valid_shell(capsys: pytest.CaptureFixture[str], folder: Path, more: tuple[str, ...]) -> None:
    path = folder / "job.sbatch"
    path.write_text(written(capsys, *ON_CPUS, "--env", "GREETING=don't", *more))
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", path], check=True)
    if checker := shutil.which("shellcheck", path=os.defpath):
        done = subprocess.run([checker, path], capture_output=True, text=True, check=False)
        assert done.stdout == ""


def test_a_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    written(capsys, *ON_CPUS)
    assert not (folder / "runs").exists()


def test_the_job_file_has_the_requested_options(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    text = written(
        capsys,
        *("--backend", "slurm", "--nodes", "3", "--gpus-per-node", "a100:4", "--cpus-per-process", "6"),
        *("--time", "1-12", "--partition", "gpu", "--account", "us", "--qos", "low", "--sbatch=--mem=64G"),
        "--env=A=b c",
    )
    options = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert options >= {
        "nodes=3",
        "ntasks-per-node=1",
        "cpus-per-task=24",
        "gpus-per-node=a100:4",
        "time=1-12",
        "partition=gpu",
        "account=us",
        "qos=low",
        "mem=64G",
        "requeue",
        "signal=USR1@120",
        "open-mode=append",
        "dependency=singleton",
        f'output="{folder}/runs/x/slurm-%j.out"',
    }
    assert "\nexport A='b c'\n" in text
    assert f"--engine-file {ROOT / 'accelerate_configs' / 'multi_node_gpu.yaml'} --nodes 3 --processes 4 " in text


@pytest.mark.parametrize(("time", "seconds"), [("2", 24), ("5:00", 60), ("30", 120), ("1-0", 120), ("0:20", 10)])
def test_a_short_time_limit_leaves_less_time_to_save(
    capsys: pytest.CaptureFixture[str], time: str, seconds: int
) -> None:
    assert f"#SBATCH --signal=USR1@{seconds}\n" in written(capsys, *ON_CPUS, "--time", time)


def test_names_with_shell_characters_are_quoted(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    text = written(capsys, *ON_CPUS, "output_dir=runs/it's $HOME *")
    head = text.partition("# The steps of a job")[0]
    done = subprocess.run(["bash", "-c", f'{head}\necho "$run"'], capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder}/runs/it's $HOME *\n"


def test_run_folders_of_the_same_name_have_jobs_of_different_names(capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise one would wait for the other."""
    names = {
        next(line for line in written(capsys, *ON_CPUS, f"output_dir={name}/x").splitlines() if "job-name" in line)
        for name in ("a", "b")
    }
    assert len(names) == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "command line: the following arguments are required: --backend"),
        (("--backend", "slurm"), "give one of --gpus-per-node and --processes-per-node (on CPUs)"),
        ((*ON_CPUS, "--gpus-per-node", "1"), "give one of --gpus-per-node and --processes-per-node (on CPUs)"),
        (("--backend", "slurm", "--gpus-per-node", "four"), "--gpus-per-node: 'four' is not COUNT or TYPE:COUNT"),
        ((*ON_CPUS, "--node", "2"), "command line: --node: unknown option; did you mean --nodes?"),
        ((*ON_CPUS, "--nodes", "0"), "--nodes: 0 is not at least 1"),
        ((*ON_CPUS, "--env", "A"), "--env: 'A' is not NAME=VALUE"),
        ((*ON_CPUS, "--partition", "a b"), "--partition: 'a b' is not a name"),
        (
            (*ON_CPUS, "--volume", "a:/b"),
            "command line: --volume: slurm does not know it, only kubernetes and skypilot",
        ),
        (
            (*ON_CPUS, "--time", "soon"),
            "--time: 'soon' is no time limit; write MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS",
        ),
        (
            (*ON_CPUS, "output_dir=a%b"),
            "output_dir: '{folder}/a%b' has characters that a job file cannot name; use others",
        ),
        (
            (*ON_CPUS, "checkpoint.resume=never"),
            "checkpoint.resume: never; a job that starts again would begin anew each time; use auto",
        ),
        (
            (*ON_CPUS, "checkpoint.every_minutes=null"),
            "checkpoint.every_minutes: null, and so is every_steps; a job that is stopped could not resume",
        ),
        (
            (*ON_CPUS, "--engine-file", f"{ROOT}/accelerate_configs/cpu.yaml"),
            f"--engine-file: {ROOT}/accelerate_configs/cpu.yaml: is for one process, 2 are asked for",
        ),
        (
            (*ON_CPUS, "--nodes", "2", "--engine-file", f"{ROOT}/accelerate_configs/zero2.yaml"),
            f"--engine-file: {ROOT}/accelerate_configs/zero2.yaml: is for one machine, 2 are asked for; {MULTI_NODE}",
        ),
        (
            (*ON_CPUS, "--engine-file", "recipe.yaml"),
            "--engine-file: {folder}/recipe.yaml: is not a configuration of accelerate",
        ),
        ((*ON_CPUS, "--engine-file", "none"), "--engine-file: {folder}/none: No such file or directory"),
        ((*ON_CPUS, "optimizer.lrr=1"), "command line: optimizer.lrr: unknown key; did you mean optimizer.lr?"),
        ((*ON_CPUS,), "sbatch: not found; submit where Slurm's commands are, or look with --dry-run"),
        (
            ("--backend", "local", "--processes-per-node", "1", "--nodes", "2"),
            "--nodes: 2: local is this machine alone",
        ),
        (
            ("--backend", "kubernetes", "--gpus-per-node", "1"),
            "--container-image: kubernetes needs one, with this repository in /app",
        ),
        (
            ("--backend", "kubernetes", "--gpus-per-node", "1", "--container-image", "x"),
            "--volume SOURCE:PATH: kubernetes needs one, or checkpoints are lost with the machine",
        ),
        (
            ("--backend", "kubernetes", "--gpus-per-node", "1", "--container-image", "x", "--volume", "a:/b"),
            "output_dir: /app/runs/x is not below /b, where --volume is; checkpoints would be lost",
        ),
        (
            ("--backend", "skypilot", "--gpus-per-node", "1", "--volume", "a:/b", "output_dir=/b/x"),
            "--gpus-per-node: 1: skypilot wants TYPE:COUNT, e.g. A100:1",
        ),
    ],
)
def test_each_mistake_is_reported_on_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: tuple[str, ...], line: str
) -> None:
    said = refusal(capsys, *arguments, "--config", "recipe.yaml")
    assert said == f"error: {line.replace('{folder}', str(folder))}"
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("7", 420), ("7:30", 450), ("1:00:05", 3605), ("2-0", 172800), ("1-2:30", 95400), ("0-0:0:9", 9)],
)
def test_time_limits_are_read_as_slurm_reads_them(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize("time", ["", "0", "0:00", "1:2:3:4", "-1", "1-", "1.5", "1h"])
def test_an_invalid_time_limit_is_refused(time: str) -> None:
    with pytest.raises(UserError, match="is no time limit"):
        seconds_of(time)


def test_a_finished_run_of_another_recipe_is_kept(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    command(folder, "sbatch", "exit 1")
    (folder / "runs" / "x").mkdir(parents=True)
    (folder / "runs" / "x" / "summary.json").write_text(json.dumps({"digests": {"recipe": "another"}}))
    assert submit.main([*ON_CPUS, "--config", "recipe.yaml"]) == 2
    line = f"error: output_dir: {folder}/runs/x has a finished run of another recipe; name another folder"
    assert capsys.readouterr().err.splitlines() == [line]


def command(folder: Path, name: str, script: str) -> None:
    """Puts a command on the path."""
    path = folder / "bin" / name
    path.write_text(f"#!{folder}/bin/bash\n{script}\n")
    path.chmod(0o755)


def test_a_dry_run_needs_no_cluster_where_its_commands_are(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    words = [*ON_CPUS, "--partition", "long", "--config", "recipe.yaml"]
    command(folder, "sinfo", "echo 'sinfo: fatal: no configuration' >&2; exit 1")
    command(folder, "sbatch", "exit 1")
    assert submit.main([*words, "--dry-run"]) == 0
    assert "#SBATCH --partition=long" in capsys.readouterr().out
    assert refusal(capsys, *words) == "error: sinfo: fatal: no configuration"


Ends = Callable[..., tuple[int, str]]


@pytest.fixture
def job(folder: Path, capsys: pytest.CaptureFixture[str]) -> Ends:
    """Runs a job file whose srun ends with a code, among stand-ins for Slurm; returns its exit code and output.

    What cannot be had of a real one at will: each state of the job, and a Slurm that does not requeue.
    """
    command(folder, "sbatch", "echo 7")
    assert submit.main([*ON_CPUS, "--config", "recipe.yaml"]) == 0
    capsys.readouterr()

    def ends(srun: str, *arguments: str, state: str = "RUNNING", requeue: str = "echo requeue") -> tuple[int, str]:
        command(folder, "srun", srun)
        shown = f'show-hostnames) echo a;; show-job) echo "JobId=7 JobState={state} X=1";;'
        command(folder, "scontrol", f"case $1-$2 in {shown} *) {requeue};; esac")
        command(folder, "scancel", 'echo "scancel $*"')
        environment = {
            "PATH": os.environ["PATH"],
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "n",
            "SLURM_JOB_NODELIST": "a",
        }
        done = subprocess.run(
            ["bash", str(folder / "runs/x" / slurm.JOB_FILE), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    return ends


def saves(folder: Path, step: int) -> str:
    return f"mkdir -p {folder}/runs/x/checkpoints/step-{step}; exit 75"


def test_the_resolved_recipe_is_beside_the_job_file(job: Ends, folder: Path) -> None:
    recipe = folder / "runs/x/job.yaml"
    assert parse(["--config", str(recipe)]).recipe == parse(["--config", "recipe.yaml"]).recipe
    assert f"recipe={shlex.quote(str(recipe))}\n" in (folder / "runs/x/job.sbatch").read_text()


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_a_job_ends_with_the_exit_code_of_its_run(job: Ends, code: int) -> None:
    ended, said = job(f"exit {code}")
    assert ended == code
    assert "requeue" not in said


def test_a_stopped_run_is_requeued(job: Ends, folder: Path) -> None:
    (folder / "bin" / "mkdir").symlink_to(shutil.which("mkdir", path=os.defpath) or "")
    ended, said = job(saves(folder, 1))
    assert ended == 75
    assert said.endswith("requeue\njob 7: stopped; requeued\n")


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "PENDING", "COMPLETING"])
def test_a_job_that_slurm_itself_ends_is_left_to_it(job: Ends, state: str) -> None:
    ended, said = job("exit 75", state=state)
    assert ended == 75
    assert f"stopped while Slurm ended it (JobState={state}); unless" in said
    assert "requeue\n" not in said


def test_it_is_reported_where_slurm_does_not_requeue(job: Ends) -> None:
    ended, said = job("exit 75", requeue="exit 1")
    assert ended == 75
    assert "Slurm does not requeue it; sbatch" in said


def test_a_stopped_job_of_a_chain_leaves_the_rest_to_the_next(job: Ends) -> None:
    ended, said = job("exit 75", "chain")
    assert ended == 75
    assert "the next job of the chain" in said
    assert "requeue\n" not in said
    assert "scancel" not in said


@pytest.mark.parametrize("code", [0, 1])
def test_the_end_of_the_run_cancels_the_rest_of_its_chain(job: Ends, code: int) -> None:
    ended, said = job(f"exit {code}", "chain")
    assert ended == code
    assert "scancel --name=n --state=PENDING" in said


def test_a_finished_run_starts_nothing(job: Ends, folder: Path) -> None:
    (folder / "runs/x/summary.json").touch()
    ended, said = job("echo started")
    assert (ended, said) == (0, f"job 7: finished already: {folder}/runs/x/summary.json\n")


def test_a_job_that_is_stopped_three_times_before_it_saves_ends(job: Ends, folder: Path) -> None:
    (folder / "bin" / "mkdir").symlink_to(shutil.which("mkdir", path=os.defpath) or "")
    assert [job("exit 75")[0], job("exit 75")[0], job(saves(folder, 1))[0]] == [75, 75, 75]
    assert [job("exit 75")[0], job("exit 75")[0]] == [75, 75]
    ended, said = job("exit 75")
    assert ended == 1
    assert "error: stopped 3 times in a row before a checkpoint was saved; give the job more --time" in said


def documented() -> list[list[str]]:
    """The commands of docs/cluster.md as lists of words."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("words", documented(), ids=" ".join)
def test_each_documented_command_is_accepted(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch and its like are run by tests/cluster."""
    if words[:2] not in (["python", "launch/submit.py"], ["mtl-dist", "submit"]):
        assert words == ["sbatch", "RUN/job.sbatch"]
        return
    monkeypatch.chdir(ROOT)
    code = submit.main([*words[2:], "--dry-run"])
    assert code == 0, capsys.readouterr().err
