"""Minimal W&B server for a run, on the loopback address, that can be made to fail."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

BUCKET = {
    "id": "run",
    "name": "run",
    "displayName": "run",
    "config": "{}",
    "wandbConfig": "{}",
    "history": "[]",
    "events": "[]",
    "summaryMetrics": "{}",
    "historyLineCount": 0,
    "logLineCount": 0,
    "eventsLineCount": 0,
    "tags": [],
    "project": {"id": "project", "name": "mtl_dist", "entity": {"id": "entity", "name": "somebody"}},
}
ANSWER = {
    "data": {
        "serverInfo": {"features": [], "cliVersionInfo": {}},
        "viewer": {"id": "viewer", "entity": "somebody", "username": "somebody", "flags": "{}", "teams": {"edges": []}},
        "upsertBucket": {"bucket": BUCKET, "inserted": True},
        "createRunFiles": {"runID": "run", "uploadHeaders": [], "files": []},
    }
}


class Server(ThreadingHTTPServer):
    """Answers every request in the same way until it is cut off."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, status: int = 200, delay: float = 0.0, mute: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.delay = delay
        self.mute = mute
        """Whether requests are accepted but never answered."""
        self.gone = False
        """Whether the server is cut off and drops open connections."""
        self.streamed = 0
        """Number of requests with metrics of a run so far."""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def cut_off(self) -> None:
        """Stops listening and drops open connections."""
        self.gone = True
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def _ours(self) -> Server:
        return cast(Server, self.server)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._ours.streamed += self.path.endswith("/file_stream")
        self._answer(self._ours.status, ANSWER if self.path == "/graphql" else {})

    def do_GET(self) -> None:
        self._answer(404, {})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        time.sleep(self._ours.delay)
        while self._ours.mute and not self._ours.gone:
            time.sleep(0.05)
        if self._ours.gone:
            self.close_connection = True
            return
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing about a request."""


def closed_port() -> int:
    """Returns a port at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
