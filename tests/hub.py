"""A server that speaks what `models fetch` asks of a Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import ClassVar

COMMIT = "c0ffee" + "0" * 34


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]

    def log_message(self, *_: object) -> None:
        """Requests are kept by the hub, not printed."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, repo: str) -> None:
        code = "GatedRepo" if repo in self.hub.gated else "RepoNotFound"
        self._answer(403 if repo in self.hub.gated else 404, X_Error_Code=code)

    def do_GET(self) -> None:
        if listed := re.fullmatch(r"/api/models/(.+/.+)/revision/([^?]+)(\?.*)?", self.path):
            self._list(listed[1], listed[2])
        elif asked := re.fullmatch(rf"/(.+/.+)/resolve/{COMMIT}/([^?]+)", self.path):
            self._file(asked[1], asked[2])
        elif (self.hub.root / self.path[1:]).is_file():
            self._answer(200, (self.hub.root / self.path[1:]).read_bytes())
        else:
            self._answer(404)

    do_HEAD = do_GET  # noqa: N815

    def _list(self, repo: str, revision: str) -> None:
        folder = self.hub.root / repo
        if not folder.is_dir() or repo in self.hub.gated:
            return self._refuse(repo)
        if revision not in ("main", COMMIT):
            return self._answer(404, X_Error_Code="RevisionNotFound")
        siblings = []
        for path in folder.iterdir():
            sibling: dict[str, object] = {"rfilename": path.name, "size": path.stat().st_size}
            if path.suffix != ".json":
                sha = self.hub.claimed.get(path.name) or _sha256(path.read_bytes())
                sibling["lfs"] = {"size": path.stat().st_size, "sha256": sha, "pointerSize": 1}
            siblings.append(sibling)
        about = {"id": repo, "sha": COMMIT, "siblings": siblings}
        self._answer(200, json.dumps(about).encode(), Content_Type="application/json")

    def _file(self, repo: str, name: str) -> None:
        path = self.hub.root / repo / name
        if not path.is_file():
            return self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        content = path.read_bytes()
        headers = {"ETag": f'"{_sha256(content)}"', "X_Repo_Commit": COMMIT}
        if self.command == "HEAD":
            return self._answer(200, content, **headers)
        asked = self.headers["Range"]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.hub.downloads.append((name, start))
        whole = len(content) - start
        if self.hub.cuts[repo, name]:
            self.hub.cuts[repo, name] -= 1
            content = content[: start + whole * 9 // 10]
        self.send_response(206 if asked else 200)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.send_header("Content-Length", str(whole))
        self.end_headers()
        if name == self.hub.stalls:
            self.wfile.write(content[start : start + whole // 2])
            self.hub.stalled.set()
            self.rfile.read(1)  # until the other side has gone
            return
        self.wfile.write(content[start:])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub:
    """Serves `root/<owner>/<repository>/<file>`, each repository at one commit.

    cuts: how often a file's connection is to be closed before its end. claimed: sha256 that the
    hub says a file has. stalls: a file whose other half never comes, which `stalled` then
    says. downloads: name and first byte of every file sent.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gated: set[str] = set()
        self.cuts: Counter[tuple[str, str]] = Counter()
        self.claimed: dict[str, str] = {}
        self.stalls = ""
        self.stalled = Event()
        self.downloads: list[tuple[str, int]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def served(root: Path) -> Iterator[Hub]:
    """A hub that serves a folder in a thread."""
    hub = Hub(root)
    thread = Thread(target=hub.server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        thread.join()
        hub.server.server_close()
