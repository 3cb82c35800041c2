"""A model hub on loopback: the part of the Hugging Face hub's HTTP interface that reading and writing models takes.

Speaks model info, tree, resolve (HEAD and GET, etags, commit headers), storage of large files behind a redirect, byte
ranges, creating repositories, preupload, LFS batches and storage, commits, tokens and the hub's error codes, so that
the real client runs against it over real HTTP. `requests` is the log; faults are switched on by fields.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

LARGE = (".safetensors", ".bin", ".pt", ".ckpt")  # what the hub keeps in its storage for large files


@dataclass
class Repository:
    """Files of the only commit; `gated` answers 403 and `private` 401 unless the token is shown."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    private: bool = False
    token: str = "hf_right"

    @property
    def commit(self) -> str:
        listing = sorted((name, git_id(data)) for name, data in self.files.items())
        return hashlib.sha1(repr(listing).encode()).hexdigest()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class HubServer:
    """`with HubServer({"owner/name": Repository({...})}) as hub:` serves at `hub.url` until the block ends."""

    repositories: dict[str, Repository]
    requests: list[Request] = field(default_factory=list)
    drops: dict[str, list[int]] = field(default_factory=dict)  # path: bytes sent before each of the next broken answers
    stalls: dict[str, list[int]] = field(default_factory=dict)  # as `drops`, but then silence instead of an end
    lies: dict[str, bytes] = field(default_factory=dict)  # path: what is sent instead, under the true file's names
    pace: int = 0  # bytes a second of files, 0: as fast as they go
    busy: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # status and headers of the next answers
    status: int | None = None  # answers everything with this status
    writers: dict[str, str] = field(default_factory=lambda: {"hf_right": "maker"})  # token: owner it may write for
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256, committed or not
    commits: list[str] = field(default_factory=list)  # their messages
    refusals: list[tuple[str, int]] = field(default_factory=list)  # (start of path, status) of the next refused writes
    roles: dict[str, str] = field(default_factory=dict)  # token: what it may do, "write" unless said
    sizes: dict[str, int] = field(default_factory=dict)  # file: what listings say of its size, in place of the truth
    large: tuple[str, ...] = LARGE  # how the names of large files end
    cut_uploads: int = 0  # so many uploads of large files break off in the middle

    def be_the_hub(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Makes this the hub of the process that runs, which may have imported the client already, and forgets its
        tokens."""
        for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(variable, raising=False)
        address = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, self.url)
        for name, value in (
            ("ENDPOINT", self.url),
            ("HUGGINGFACE_CO_URL_TEMPLATE", address),
            ("HF_HUB_CACHE", str(cache)),
            ("HF_TOKEN_PATH", str(cache.parent / "token")),
        ):
            monkeypatch.setattr(constants, name, value)

    def __enter__(self) -> HubServer:
        hub = self
        self.ended = threading.Event()

        class Handler(self.handler()):  # type: ignore[misc]
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.storage_url = f"http://localhost:{self._server.server_address[1]}/storage"  # for the client another host
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def handler(self) -> type[_Handler]:
        """What answers the requests."""
        return _Handler

    def fetched(self) -> list[str]:
        """Paths of the files whose content was asked for, in order."""
        content = re.compile(r"/(?:[^/]+/[^/]+/resolve/[^/]+|storage/[^/]+/[^/]+)/(.+)")
        found = (content.fullmatch(r.path) for r in self.requests if r.method == "GET")
        return [unquote(match[1]) for match in found if match]


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """The log is `HubServer.requests`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server_state
        path = urlsplit(self.path).path
        if path == "/api/agent-harnesses":  # the client asks by itself, once a day, and goes on without an answer
            return self.json({"standardEnvVars": [], "harnesses": {}})
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        hub.requests.append(Request(self.command, path, self.headers.get("Range"), token))
        if hub.busy:
            status, headers = hub.busy.pop(0)
            self.answer(status, b"later", headers)
        elif hub.status is not None:
            self.answer(hub.status, b"the hub is unwell")
        elif path == "/api/whoami-v2":
            self.whoami(token)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/auth-check/write", path):
            self.may_write(match[1], token)
        elif match := re.fullmatch(r"/storage/([^/]+/[^/]+)/(.+)", path):
            self.content(unquote(match[2]), hub.repositories[match[1]].files[unquote(match[2])])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self.within(match[1], match[2] or "main", self.info, token)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self.within(match[1], match[2], self.tree, token)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name = unquote(match[3])
            self.within(match[1], match[2], lambda key, repo: self.resolve(key, repo, name), token)
        else:
            self.refuse(404, "NotFound")

    def whoami(self, token: str | None) -> None:
        hub = self.server_state
        if token not in hub.writers:
            return self.refuse(401, "Unauthorized")
        role = hub.roles.get(token, "write")
        self.json({"name": hub.writers[token], "orgs": [], "auth": {"accessToken": {"role": role}}})

    def may_write(self, key: str, token: str | None) -> None:
        hub = self.server_state
        if key not in hub.repositories:
            self.refuse(404, "RepoNotFound")
        elif hub.writers.get(token or "") != key.split("/")[0]:
            self.refuse(403, "Forbidden")
        else:
            self.json({})

    def do_POST(self) -> None:
        self.write()

    def do_PUT(self) -> None:
        self.write()

    def write(self) -> None:
        hub = self.server_state
        path = urlsplit(self.path).path
        if path == "/api/agent-harnesses":  # the client asks by itself, once a day, and goes on without an answer
            return self.json({"standardEnvVars": [], "harnesses": {}})
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        hub.requests.append(Request(self.command, path, None, token))
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PUT" and hub.cut_uploads:
            hub.cut_uploads -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(length)
        for refusal in list(hub.refusals):
            if path.startswith(refusal[0]):
                hub.refusals.remove(refusal)
                return self.refuse(refusal[1], "Refused")
        owner = hub.writers.get(token or "")
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            hub.stored[hashlib.sha256(body).hexdigest()] = body
            self.answer(200 if hashlib.sha256(body).hexdigest() == match[1] else 400, b"")
        elif path == "/api/validate-yaml":
            self.json({"errors": [], "warnings": []})
        elif owner is None:
            self.refuse(401, "Unauthorized")
        elif path == "/api/repos/create":
            self.create(json.loads(body), owner)
        elif match := re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?/(preupload|info|commit)/(.+)", path):
            if match[1] not in hub.repositories:
                self.refuse(404, "RepoNotFound")
            elif match[1].split("/")[0] != owner:
                self.refuse(403, "Forbidden")
            elif match[2] == "preupload":
                self.preupload(match[1], json.loads(body))
            elif match[2] == "info":
                self.batch(json.loads(body))
            else:
                self.commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.refuse(404, "NotFound")

    def create(self, asked: dict[str, Any], owner: str) -> None:
        hub = self.server_state
        key = f"{asked.get('organization') or owner}/{asked['name']}"
        if not key.startswith(owner + "/"):
            self.refuse(403, "Forbidden")
        elif key in hub.repositories:
            self.answer(409, json.dumps({"error": "exists", "url": f"{hub.url}/{key}"}).encode())
        else:
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            hub.repositories[key] = Repository({}, private=private)
            self.json({"url": f"{hub.url}/{key}"})

    def preupload(self, key: str, asked: dict[str, Any]) -> None:
        files = []
        for entry in asked["files"]:
            mode = "lfs" if entry["path"].endswith(self.server_state.large) else "regular"
            data = self.server_state.repositories[key].files.get(entry["path"])
            oid = None if data is None else sha256(data) if mode == "lfs" else git_id(data)
            files.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.json({"files": files})

    def batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for entry in asked["objects"]:
            known = entry["oid"] in self.server_state.stored
            actions = {"upload": {"href": f"{self.server_state.url}/lfs/{entry['oid']}"}}
            objects.append({**entry} if known else {**entry, "actions": actions})
        self.json({"transfer": "basic", "objects": objects})

    def commit(self, key: str, lines: list[dict[str, Any]]) -> None:
        hub = self.server_state
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                hub.commits.append(value["summary"])
            elif line["key"] == "file":
                hub.repositories[key].files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.repositories[key].files[value["path"]] = hub.stored[value["oid"]]
        oid = hub.repositories[key].commit
        self.json({"commitUrl": f"{hub.url}/{key}/commit/{oid}", "commitOid": oid, "success": True})

    def within(self, key: str, revision: str, act: Any, token: str | None) -> None:
        repo = self.server_state.repositories.get(key)
        if repo is None:
            self.refuse(404, "RepoNotFound")
        elif repo.private and token != repo.token:
            self.refuse(401, "RepoNotFound")
        elif repo.gated and token != repo.token:
            self.refuse(403, "GatedRepo")
        elif unquote(revision) not in (*repo.revisions, repo.commit):
            self.refuse(404, "RevisionNotFound")
        else:
            act(key, repo)

    def info(self, key: str, repo: Repository) -> None:
        self.json(
            {"_id": "0", "id": key, "modelId": key, "sha": repo.commit, "private": repo.private, "tags": []}
            | {"siblings": [{"rfilename": name} for name in sorted(repo.files)]}
        )

    def tree(self, key: str, repo: Repository) -> None:
        self.json([self.entry(name, data) for name, data in sorted(repo.files.items())])

    def entry(self, name: str, data: bytes) -> dict[str, Any]:
        """A file as listings show it."""
        size = self.server_state.sizes.get(name, len(data))
        entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": git_id(data)}
        if name.endswith(self.server_state.large):
            entry["lfs"] = {"oid": sha256(data), "size": size, "pointerSize": 130}
        return entry

    def resolve(self, key: str, repo: Repository, name: str) -> None:
        data = repo.files.get(name)
        headers = {"X-Repo-Commit": repo.commit}
        if data is None:
            self.refuse(404, "EntryNotFound", headers)
        elif name.endswith(self.server_state.large):
            headers |= {
                "X-Linked-Etag": f'"{sha256(data)}"',
                "X-Linked-Size": str(self.server_state.sizes.get(name, len(data))),
                "Location": f"{self.server_state.storage_url}/{key}/{name}",
            }
            self.answer(302, b"", headers)
        else:
            self.content(name, data, headers | {"ETag": f'"{git_id(data)}"'})

    def content(self, name: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        """The bytes, or the range of them that was asked for; breaks off where `drops` says."""
        headers = {"Accept-Ranges": "bytes", **(headers or {})}
        start, status = 0, 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        hub = self.server_state
        data = hub.lies.get(name, data)
        left, silent = hub.drops.get(name), hub.stalls.get(name)
        stop = left.pop(0) if left and self.command == "GET" else None
        if silent and self.command == "GET":
            self.answer(status, data[start:], headers, silent.pop(0), stalls=True)
        else:
            self.answer(status, data[start:], headers, stop, pace=hub.pace)

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": f"{code} (test)", **(headers or {})})

    def answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        stop: int | None = None,
        stalls: bool = False,
        pace: int = 0,
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            step = pace // 20 or len(body) or 1
            for at in range(0, len(body[:stop]), step):
                self.wfile.write(body[:stop][at : at + step])
                if pace:
                    time.sleep(0.05)
        if stalls:
            self.wfile.flush()
            self.server_state.ended.wait(60)
        if stop is not None:
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True


@functools.lru_cache(64)  # asked for with each request
def git_id(data: bytes) -> str:
    """The object id that git gives the file, which is the hub's etag of small files."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@functools.lru_cache(64)
def sha256(data: bytes) -> str:
    """The name of a large file in the hub's storage."""
    return hashlib.sha256(data).hexdigest()
