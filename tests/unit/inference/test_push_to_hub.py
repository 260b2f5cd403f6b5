"""`push` against a server that speaks as much of the hub's interface as an upload needs."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest
from huggingface_hub import constants

from mtl_dist.__main__ import main
from mtl_dist.errors import TrainingError, UserError


class Hub(ThreadingHTTPServer):
    """Keeps what is uploaded; refuses where `refuse` is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.refuse = False


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        hub = cast(Hub, self.server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub.tokens.add(self.headers["Authorization"])
        if hub.refuse:
            self._answer(403, {"error": "not yours"})
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._answer(200, {"url": f"http://127.0.0.1:{hub.server_port}/me/mine"})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/models/me/mine/preupload/main":
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            self._answer(200, {"files": [one | {"shouldIgnore": False} for one in files]})
        elif self.path == "/api/models/me/mine/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://127.0.0.1:{hub.server_port}/me/mine/commit/1"
            self._answer(200, {"commitUrl": url, "commitOid": "1"})
        else:
            self._answer(404, {"error": self.path})

    def do_GET(self) -> None:
        self._answer(404, {"error": self.path})

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Prints nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("# A card\n")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> str:
    assert main(["push", *map(str, arguments)]) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_all_files_of_a_folder_are_uploaded(hub: Hub, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(exported), "me/mine", "--private"]) == 0
    assert hub.files == {"model.safetensors": b"weights", "README.md": b"# A card\n"}
    assert [(one["name"], one["visibility"]) for one in hub.created] == [("mine", "private")]
    assert hub.tokens == {"Bearer hf_secret"}
    out = capsys.readouterr().out
    assert out == f"{exported} is at http://127.0.0.1:{hub.server_port}/me/mine/commit/1\n"


def test_only_the_model_of_a_run_is_uploaded(
    hub: Hub, exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.mktemp("run")
    (run / "recipe.yaml").touch()
    (run / "metrics.jsonl").touch()
    exported.rename(run / "model")
    assert main(["push", str(run), "me/mine"]) == 0
    assert hub.files.keys() == {"model.safetensors", "README.md"}
    assert "visibility" not in hub.created[0]


def test_a_refusal_of_the_hub_is_reported_on_one_line(
    hub: Hub, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuse = True
    assert refused(capsys, TrainingError.exit_code, exported, "me/mine").startswith("error: push: me/mine: ")


def test_mistakes_are_reported_on_one_line_before_anything_is_sent(
    hub: Hub, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = UserError.exit_code
    assert "a/b/c is no name at the hub" in refused(capsys, code, exported, "a/b/c")
    (exported / "model.safetensors").unlink()
    assert "has no model.safetensors" in refused(capsys, code, exported, "me/mine")
    (exported / "model.safetensors").touch()
    monkeypatch.setenv("HF_TOKEN", "")
    assert refused(capsys, code, exported, "me/mine").startswith("error: push: no token for the hub; ")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(capsys, code, exported, "me/mine")
    assert not hub.created
