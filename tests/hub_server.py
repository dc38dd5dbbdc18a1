"""A small server on loopback that speaks the Hub's protocol with the real client, and misbehaves on demand.

Repositories are kept in memory as commits (name → content). Large files are those that the Hub stores in LFS; their
ETag is their SHA-256. Every request is logged, so that a test can check which ones were made.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".pth")


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = ""

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit on top of main and return its id, 40 hex digits as git's."""
        tree = {**self.commits.get(self.head, {}), **files}
        self.head = hashlib.sha1(repr((len(self.commits), sorted(tree))).encode()).hexdigest()
        self.commits[self.head] = tree
        return self.head


@dataclass
class Hub:
    """The server's state; a test sets the faults and reads the log."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # plain files, served at /files/NAME
    private: set[str] = field(default_factory=set)
    token: str = "hf_test"
    log: list[str] = field(default_factory=list)  # "METHOD path [range]"
    statuses: list[int] = field(default_factory=list)  # status codes for the first requests, one each
    always: int | None = None  # the status code for all requests
    cuts: list[int] = field(default_factory=list)  # cut the next answers with a file after this many bytes
    corrupt: bool = False  # flip a byte of every large file
    ignore_ranges: bool = False
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS uploads by SHA-256

    def add(self, repo: str, files: dict[str, bytes]) -> str:
        return self.repositories.setdefault(repo, Repository()).commit(files)

    def asked(self, method: str, part: str = "") -> list[str]:
        return [line for line in self.log if line.startswith(f"{method} ") and part in line]


@contextmanager
def serving() -> Iterator[Hub]:
    """A `Hub` on a port of the loopback interface, stopped at the end."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(self._read)

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_POST(self) -> None:
        self._answer(self._write)

    def do_PUT(self) -> None:
        self._answer(self._write)

    def _answer(self, handle) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.route = unquote(urlsplit(self.path).path).lstrip("/")
        span = self.headers.get("Range")
        self.hub.log.append(f"{self.command} {self.route}" + (f" {span}" if span else ""))
        status = self.hub.always or (self.hub.statuses.pop(0) if self.hub.statuses else None)
        if status:
            self._send(status, b"", {"Retry-After": "1"} if status == 429 else {})
        else:
            handle()

    def _read(self) -> None:
        if self.route.startswith("files/"):
            content = self.hub.files.get(self.route.removeprefix("files/"))
            self._send_file(content, {}, large=True) if content is not None else self._send(404)
            return
        if self.route.startswith("api/models/"):
            self._send_model_info(self.route.removeprefix("api/models/"))
            return
        if self.route.count("/") < 4:
            self._send(404)
            return
        owner, name, _resolve, revision, filename = self.route.split("/", 4)
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None or (f"{owner}/{name}" in self.hub.private and not self._authorized()):
            self._send(401, headers={"X-Error-Code": "RepoNotFound"})
            return
        commit = repository.head if revision == "main" else revision
        if commit not in repository.commits:
            self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
            return
        content = repository.commits[commit].get(filename)
        if content is None:
            self._send(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        self._send_file(content, {"X-Repo-Commit": commit}, large=filename.endswith(LARGE))

    def _send_model_info(self, repo: str) -> None:
        if repo not in self.hub.repositories or repo in self.hub.private:
            self._send(401, headers={"X-Error-Code": "RepoNotFound"})
        else:
            self._send_json({"id": repo, "sha": self.hub.repositories[repo].head, "private": False, "tags": []})

    def _send_file(self, content: bytes, headers: dict[str, str], *, large: bool) -> None:
        git_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest() if large else git_id}"'
        if self.hub.corrupt and large:
            content = content[:-1] + bytes([content[-1] ^ 1])
        status, total = 200, len(content)
        span = self.headers.get("Range")
        if span and not self.hub.ignore_ranges:
            start = int(span.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            status, content = 206, content[start:]
        cut = self.hub.cuts.pop(0) if self.command == "GET" and large and self.hub.cuts else None
        self._send(status, content, headers, cut=cut)

    def _write(self) -> None:
        if self.route.startswith("objects/"):
            self.hub.objects[self.route.removeprefix("objects/")] = self.body
            self._send_json({})
        elif not self._authorized():
            self._send(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        elif self.route == "api/repos/create":
            wanted = json.loads(self.body)
            repo = f"{wanted['organization']}/{wanted['name']}"
            self.hub.repositories.setdefault(repo, Repository())
            self._send_json({"url": f"{self.hub.url}/{repo}"})
        elif self.route == "api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif "/preupload/" in self.route:
            files = json.loads(self.body)["files"]
            modes = [("lfs" if f["path"].endswith(LARGE) else "regular", f["path"]) for f in files]
            self._send_json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for m, p in modes]})
        elif self.route.endswith("/info/lfs/objects/batch"):
            self._send_json(
                {"transfer": "basic", "objects": [self._offer(o) for o in json.loads(self.body)["objects"]]}
            )
        elif "/commit/" in self.route:
            self._commit()
        else:
            self._send(404)

    def _offer(self, wanted: dict) -> dict:
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/objects/{wanted['oid']}"}}}

    def _commit(self) -> None:
        files = {}
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        repo = "/".join(self.route.split("/")[2:4])
        commit = self.hub.add(repo, files)
        self._send_json({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})

    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _send_json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, content: bytes = b"", headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if cut is None else content[:cut])
        self.close_connection = cut is not None
