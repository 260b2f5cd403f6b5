"""Functions that build the image and run containers of it, with a Docker engine or, where none runs, with buildah.

Buildah needs root. Its store is a temporary folder, or the folder in MTL_DIST_IMAGE_STORE, which keeps the base image
for later runs.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypedDict, Unpack

import psutil

from tests.distributed.launching import ROOT

IMAGE = "localhost/mtl_transformer_test"
BASE = "python:3.11-slim"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
"""Packages of Debian 12 (with Python 3.11) that replace the base image if no registry can be reached."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
SECONDS = 2400
"""Seconds after which a build or a run counts as hanging."""


class Container(Protocol):
    """Running container."""

    @property
    def runs(self) -> bool: ...

    def stop(self) -> None:
        """Sends SIGTERM to the first process, as `docker stop` does."""
        ...

    def wait(self) -> tuple[int, str, str]:
        """Waits for the end and returns exit code, stdout and stderr."""
        ...


class ContainerOptions(TypedDict, total=False):
    """Options of a container."""

    volumes: Mapping[Path, str]
    """Target, or target:ro, for each folder of this machine; default: none."""
    user: int
    """User id; default: the user of the image."""
    environment: Mapping[str, str]
    """Environment variables besides those of the image."""
    read_only: bool
    """Whether only volumes and /tmp are writable; default: False."""


class Images(Protocol):
    """Engine that builds the image and runs it without network."""

    def build(self) -> None: ...

    @property
    def size(self) -> int:
        """Size of the image in bytes."""
        ...

    def start(self, *arguments: str, **options: Unpack[ContainerOptions]) -> Container:
        """Starts a container with these arguments."""
        ...


def output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@contextmanager
def images_here() -> Iterator[Images | None]:
    """Yields the engine that can build and run images on this machine, or None."""
    docker = shutil.which("docker")
    if docker is not None and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0:
        yield Docker()
    elif shutil.which("buildah") is not None and os.geteuid() == 0 and sys.platform == "linux":
        with TemporaryDirectory(prefix="mtl_dist-images-") as scratch:
            buildah = Buildah(Path(os.environ.get("MTL_DIST_IMAGE_STORE", f"{scratch}/store")), Path(scratch))
            try:
                yield buildah
            finally:
                buildah.close()
    else:
        yield None


class Docker:
    """Images of a Docker engine."""

    def build(self) -> None:
        output(["docker", "build", "--tag", IMAGE, str(ROOT)])

    @property
    def size(self) -> int:
        return int(output(["docker", "image", "inspect", "--format", "{{.Size}}", IMAGE]))

    def start(self, *arguments: str, **options: Unpack[ContainerOptions]) -> "DockerContainer":
        volumes, variables = options.get("volumes", {}), options.get("environment", {})
        flags = ["--network", "none"]
        flags += [part for source, target in volumes.items() for part in ("--volume", f"{source}:{target}")]
        flags += [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
        flags += ["--user", f"{options['user']}:{options['user']}"] if "user" in options else []
        flags += ["--read-only", "--tmpfs", "/tmp"] if options.get("read_only") else []
        name = output(["docker", "create", *flags, IMAGE, *arguments]).strip()
        return DockerContainer(name, _started(["docker", "start", "--attach", name]))


class DockerContainer:
    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._process = process

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        output(["docker", "kill", "--signal", "TERM", self._name])

    def wait(self) -> tuple[int, str, str]:
        stdout, stderr = self._process.communicate(timeout=SECONDS)
        output(["docker", "rm", "--force", self._name])
        return self._process.returncode, stdout, stderr


class Buildah:
    """Images built by buildah and run by util-linux, so that the first process has number 1 and there is no network."""

    def __init__(self, store: Path, scratch: Path) -> None:
        self._store = store
        self._scratch = scratch
        self._container = ""
        self._root = Path()
        self._config: dict[str, Any] = {}
        self._number = 0

    def _buildah(self, *words: str) -> str:
        driver = ["--storage-driver", "vfs", "--root", f"{self._store}/images", "--runroot", f"{self._store}/run"]
        return output(["buildah", *driver, *words])

    def build(self) -> None:
        self._store.mkdir(parents=True, exist_ok=True)
        if not self._has(BASE):
            self._make_base_image()
        options = ["--pull-never", "--layers=false", "--isolation", "chroot"]
        mounts = [word for mount in self._pip_settings() for word in ("--volume", mount)]
        self._buildah("bud", *options, *mounts, "--tag", IMAGE, str(ROOT))
        self._config = json.loads(self._buildah("inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
        self._container = self._buildah("from", "--pull-never", IMAGE).strip()
        self._root = Path(self._buildah("mount", self._container).strip())

    def close(self) -> None:
        """Removes everything but images from the store."""
        if self._container:
            self._buildah("rm", self._container)

    def _has(self, image: str) -> bool:
        names = self._buildah("images", "--format", "{{.Name}}:{{.Tag}}").split()
        return any(name.endswith(f"/{image}") for name in names)

    def _make_base_image(self) -> None:
        """Pulls the base image from its registry, or builds a replacement of it from Debian's packages."""
        try:
            self._buildah("pull", BASE)
        except AssertionError:
            root = self._scratch / "base"
            output(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)])
            for leftovers in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*"):
                output(["sh", "-c", f"rm -rf {root}/{leftovers}"])
            (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
            container = self._buildah("from", "scratch").strip()
            self._buildah("add", container, f"{root}/", "/")
            path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
            self._buildah("config", "--env", path, "--env", "LANG=C.UTF-8", container)
            self._buildah("commit", "--rm", container, BASE)
            shutil.rmtree(root)

    def _pip_settings(self) -> list[str]:
        """Returns mounts of this machine's pip settings for the build, because only its index may be reachable."""
        settings = {}
        for line in output([sys.executable, "-m", "pip", "config", "list"]).splitlines():
            key, _, value = line.partition("=")
            section, _, name = key.rpartition(".")
            if section in ("global", ":env:") and name not in ("cache-dir", "require-virtualenv", "config-file"):
                settings[name] = value.strip("'").replace("\\n", " ")
        file = self._scratch / "pip.conf"
        file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
        words = [word for value in settings.values() for word in value.split()]
        # The pages of an index in a folder link to files beside that folder.
        words = [str(Path(word[7:]).parent) if word.startswith("file:///") else word for word in words]
        folders = {Path(word) for word in words if word.startswith("/") and Path(word).exists()}
        return [f"{file}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in sorted({*folders, CERTIFICATES}))]

    @property
    def size(self) -> int:
        number, unit = self._buildah("images", "--format", "{{.Size}}", IMAGE).split()
        return int(float(number) * {"MB": 10**6, "GB": 10**9}[unit])

    def start(self, *arguments: str, **options: Unpack[ContainerOptions]) -> "NamespaceContainer":
        volumes = options.get("volumes", {})
        self._number += 1
        own = self._scratch / str(self._number)
        for name in ("upper", "work", "root", "tmp"):
            (own / name).mkdir(parents=True)
        (own / "tmp").chmod(0o1777)
        (own / "upper/etc").mkdir()
        (own / "upper/etc/hosts").write_text("127.0.0.1 localhost\n", encoding="utf-8")  # as Docker writes it
        variables = dict(pair.split("=", 1) for pair in self._config["Env"]) | dict(options.get("environment", {}))
        for target in volumes.values():  # Docker creates the mount points
            (own / "upper" / target.partition(":")[0].lstrip("/")).mkdir(parents=True, exist_ok=True)
        lines = [line.split(":") for line in (self._root / "etc/passwd").read_text().splitlines()]
        image_uid = next(int(line[2]) for line in lines if line[0] == self._config["User"])
        uid = options.get("user", image_uid)
        specification = {
            "root": str(own / "root"),
            "layers": {"lowerdir": str(self._root), "upperdir": str(own / "upper"), "workdir": str(own / "work")},
            "scratch": str(own / "tmp"),
            "volumes": {str(source): target for source, target in volumes.items()},
            "read_only": options.get("read_only", False),
            "workdir": self._config["WorkingDir"],
            "user": uid,
            "group": uid,
            "environment": variables,
            "command": [*self._config["Entrypoint"], *arguments],
        }
        (own / "specification.json").write_text(json.dumps(specification), encoding="utf-8")
        namespaces = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child"]
        inside = [sys.executable, str(Path(__file__).with_name("inside.py")), str(own / "specification.json")]
        return NamespaceContainer(_started([*namespaces, *inside]))


class NamespaceContainer:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        (first,) = psutil.Process(self._process.pid).children()
        first.terminate()

    def wait(self) -> tuple[int, str, str]:
        stdout, stderr = self._process.communicate(timeout=SECONDS)
        return self._process.returncode, stdout, stderr


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
