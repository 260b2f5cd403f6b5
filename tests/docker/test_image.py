"""Builds the container image and trains in it.

With Docker, or with the command named by MTL_DIST_IMAGE_TOOL: `TOOL CONTEXT COMMAND...` builds CONTEXT/Dockerfile and
runs COMMAND in the image.
"""

import ast
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = os.environ.get("MTL_DIST_IMAGE_TOOL")
IMAGE = "mtl_transformer_test"
MINUTES = 40
"""After which a build or a run counts as hanging."""
FEW_STEPS = ["tasks.domain.max_rows=64", "tasks.sentiment.max_rows=64", "output_dir=runs/few"]


def have_docker() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0


def in_image(command: str) -> str:
    """What a shell command prints in the image, run without network where Docker runs it."""
    if TOOL:
        return output([*shlex.split(TOOL), str(ROOT), "sh", "-c", command])
    output(["docker", "build", "--tag", IMAGE, str(ROOT)])
    return output(["docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", IMAGE, "-c", command])


def output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def instruction(name: str) -> list[str]:
    """The words of ENTRYPOINT or CMD in the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return ast.literal_eval(next(line.removeprefix(name) for line in lines if line.startswith(f"{name} ")).strip())


@pytest.mark.docker
@pytest.mark.skipif(not TOOL and not have_docker(), reason="neither a Docker engine nor MTL_DIST_IMAGE_TOOL is here")
def test_the_image_trains_its_default_recipe_as_a_user_without_rights() -> None:
    training = shlex.join([*instruction("ENTRYPOINT"), *instruction("CMD"), *FEW_STEPS])
    printed = in_image(f"{training} >&2 && id -u && cat runs/few/summary.json")
    user, _, summary = printed.partition("\n")
    assert user == "1000"
    assert [phase["name"] for phase in json.loads(summary)["phases"]] == ["heads", "upper", "all"]
    assert {"test/domain/accuracy", "test/sentiment/accuracy"} <= json.loads(summary).keys()
