"""A server on loopback that speaks the Hugging Face Hub's protocol: download, and one commit."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

TOKEN = "hf_token_of_a_test"


class Hub(ThreadingHTTPServer):
    """Repositories as `owner/name` -> file -> content; `fault` says what goes wrong, if anything.

    Faults: 401, 404 or 500 of every answer, `cut` (half a file), `sum` (another content than its
    checksum), `card` (the card is refused).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.fault: str | int | None = None
        self.created: dict[str, Any] = {}
        self.cards: list[str] = []

    def serve_folder(self, repository: str, folder: Path) -> None:
        self.repositories[repository] = {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """The server, as the one that huggingface_hub asks, with an empty cache and no waiting."""
    server = Hub()
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    constants = "huggingface_hub.constants"
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(f"{constants}.ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        self._file()

    def _answer(self, status: int, content: Any = None, **headers: str) -> None:
        body = json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refused(self) -> bool:
        fault = self.server.fault
        if isinstance(fault, int):
            code = {401: "GatedRepo", 404: "RepoNotFound"}.get(fault, "")
            self._answer(fault, {"error": "as asked"}, X_Error_Code=code)
        return isinstance(fault, int)

    def _file(self) -> None:
        if self._refused():
            return
        repository, _, place = self.path.lstrip("/").partition("/resolve/")
        files, name = self.server.repositories.get(repository), place.partition("/")[2]
        if files is None or name not in files:
            code = "RepoNotFound" if files is None else "EntryNotFound"
            self._answer(404, X_Error_Code=code, X_Repo_Commit=_commit(files or {}))
            return
        content = files[name]
        self.send_response(200)
        self.send_header("X-Repo-Commit", _commit(files))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            if self.server.fault == "sum":
                content = content[:-1] + bytes([content[-1] ^ 1])
            self.close_connection = self.server.fault == "cut"
            self.wfile.write(content[: len(content) // 2] if self.close_connection else content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._refused():
            return
        hub = self.server
        if self.path == "/api/validate-yaml":
            hub.cards.append(json.loads(body)["content"])
            errors = [{"message": "no such licence"}] if hub.fault == "card" else []
            self._answer(400 if errors else 200, {"errors": errors, "warnings": []})
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"error": "no token"})
        elif self.path == "/api/repos/create":
            hub.created = json.loads(body)
            name = f"{hub.created['organization']}/{hub.created['name']}"
            hub.repositories.setdefault(name, {})
            self._answer(200, {"url": f"http://127.0.0.1/{name}"})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        else:
            name = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    hub.repositories[name][line["value"]["path"]] = content
            commit = _commit(hub.repositories[name])
            url = f"http://127.0.0.1/{name}/commit/{commit}"
            self._answer(200, {"commitUrl": url, "commitOid": commit})
