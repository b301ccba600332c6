"""The part of the Hugging Face Hub's API that an upload uses, on this machine.

POST /api/repos/create, /api/validate-yaml, /api/models/REPO/preupload/main and
/api/models/REPO/commit/main. Every file comes with the commit, as small files do; how large ones go
depends on the client's version and is its own affair.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_token_of_a_test"
OID = "c0ffee" + "0" * 34


class FakeHub(ThreadingHTTPServer):
    """Repositories by name: path -> content; what is `private`; requests by path, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.requests: list[str] = []
        self.messages: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        path, hub, body = self.path.split("?")[0], self.server, self._body()
        hub.requests.append(path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif path.endswith("/commit/main"):
            self._commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        else:
            self._answer(404, {"error": f"the fake knows no {path}"})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        made = {"url": f"{self.server.endpoint}/{name}", "id": name}
        if name in self.server.repositories:
            self._answer(409, {"error": "You already created this model repo", **made})
            return
        self.server.repositories[name] = {}
        if wanted.get("visibility") == "private" or wanted.get("private"):
            self.server.private.add(name)
        self._answer(200, made)

    def _validate(self, content: str) -> None:
        _, front, _ = content.split("---\n", 2)
        metadata = yaml.safe_load(front)
        is_right = (
            isinstance(metadata["license"], str)
            and metadata["license"] == metadata["license"].lower()
        )
        errors = [] if is_right else [{"message": '"license" must be one of the known'}]
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value, files = entry["value"], self.server.repositories[name]
            if entry["key"] == "header":
                self.server.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        url = f"{self.server.endpoint}/{name}/commit/{OID}"
        self._answer(200, {"success": True, "commitUrl": url, "commitOid": OID})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
