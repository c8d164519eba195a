"""A stand-in for the Hub on loopback: repositories of models whose history and uploads can be looked at.

Of its HTTP interface what huggingface_hub asks for: creating a repository, asking which files are large and which are
there already, uploading large files by their digest, commits, listing and downloading.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlparse

LARGE = (".safetensors", ".png")
TOKEN = "hf_of_a_test"


@dataclass
class Repository:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    """The whole tree of each, the first empty."""

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """Holds back the upload of one digest, if told to, until it is let go."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.uploads: Counter[str] = Counter()
        self.refused: list[str] = []
        self.hold, self.held, self.changed = "", threading.Event(), threading.Condition()
        self.failing = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients are killed."""

    def wait_until(self, known: set[str]) -> None:
        """Until all of these digests are here and the one that is held back has been asked for."""
        with self.changed:
            assert self.changed.wait_for(lambda: known <= self.large.keys() and self.held.is_set(), timeout=120)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None: ...

    def answer(self, status: int, content: object = None, raw: bytes = b"", **headers: str) -> None:
        body = raw if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def anything(self) -> None:
        hub, body = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path)
        if path.startswith("/large/"):
            return self.upload(path.removeprefix("/large/"), body)
        if hub.failing:
            return self.answer(500, {"error": "out of order"})
        if self.command != "GET" and self.command != "HEAD" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            hub.refused.append(path)
            return self.answer(401, {"error": "who are you?"})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name, rest = "/".join(parts[:2]).removesuffix(".git"), parts[2:]
        if (repository := hub.repositories.get(name)) is None:
            return self.answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
        return self.of(repository, name, rest, body, api=path.startswith("/api/"))

    do_GET = do_POST = do_PUT = do_HEAD = anything

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = name in self.server.repositories
        if not known:
            self.server.repositories[name] = Repository(private=asked.get("visibility") == "private")
        self.answer(409 if known else 200, {"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def upload(self, digest: str, body: bytes) -> None:
        hub = self.server
        assert hashlib.sha256(body).hexdigest() == digest
        if digest == hub.hold:
            with hub.changed:
                hub.held.set()
                hub.changed.notify_all()
            return None  # the connection ends without an answer
        with hub.changed:
            hub.large[digest] = body
            hub.uploads[digest] += 1
            hub.changed.notify_all()
        return self.answer(200, {})

    def of(self, repository: Repository, name: str, rest: list[str], body: bytes, *, api: bool) -> None:
        hub = self.server
        if rest[:1] == ["preupload"]:
            found = [self.preupload(repository, each["path"]) for each in json.loads(body)["files"]]
            return self.answer(200, {"files": found})
        if rest == ["info", "lfs", "objects", "batch"]:
            objects = []
            for each in json.loads(body)["objects"]:
                upload = {"upload": {"href": f"{hub.url}/large/{each['oid']}", "header": {}}}
                objects.append({**each, **({} if each["oid"] in hub.large else {"actions": upload})})
            kind = "application/vnd.git-lfs+json"
            return self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type=kind)
        if rest[:1] == ["commit"]:
            tree = dict(repository.files)
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    tree[value["path"]] = hub.large[value["oid"]]
                elif line["key"] == "deletedFile":
                    del tree[value["path"]]
            repository.commits.append(tree)
            address = f"{hub.url}/{name}/commit/{repository.sha}"
            return self.answer(200, {"commitUrl": address, "commitOid": repository.sha, "success": True})
        if rest[:1] == ["tree"]:
            under = "".join(f"{each}/" for each in rest[2:])
            files = [
                {"type": "file", "path": path, "size": len(content), "oid": _git_digest(content)}
                for path, content in repository.files.items()
                if path.startswith(under)
            ]
            if not files and under:
                return self.answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
            return self.answer(200, files)
        if api:
            siblings = [{"rfilename": path} for path in repository.files]
            told = {"id": name, "modelId": name, "sha": repository.sha, "siblings": siblings}
            return self.answer(200, {**told, "private": repository.private, "tags": [], "downloads": 0, "likes": 0})
        content = repository.files.get("/".join(rest[2:]))
        if content is None:
            return self.answer(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
        return self.answer(200, raw=content, ETag=f'"{_git_digest(content)}"', X_Repo_Commit=repository.sha)

    def preupload(self, repository: Repository, path: str) -> dict[str, object]:
        large, content = path.endswith(LARGE), repository.files.get(path)
        digest = None if content is None else hashlib.sha256(content).hexdigest() if large else _git_digest(content)
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": digest}


def _git_digest(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
