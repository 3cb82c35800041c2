"""A hub on loopback that keeps large files in Xet storage, as the real one does: what hf_xet, which huggingface_hub's
client uses wherever it is installed, needs to upload and to download.

Speaks the token routes, xorbs (blocks of chunks, kept as they come), shards (of which it reads the files' terms) and
reconstruction; the newer routes that hf_xet tries first answer 404, as the protocol allows. The server knows such a
file by its hashes and terms only, its bytes are put together by hf_xet itself when it is fetched.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from hub_server import HubServer, Repository, Request, _Handler

RECORD = 48  # bytes of a header, and of every record of a shard
VERIFIED, DESCRIBED = 1 << 31, 1 << 30  # flags of a file: a record more for each term; one with its SHA-256


class XetFile(bytes):
    """Stands for a file's bytes in a repository: its SHA-256. `terms`: (xorb, bytes, first chunk, end of chunks)."""

    name: str
    terms: list[tuple[str, int, int, int]]


@dataclass
class XetHubServer(HubServer):
    """As `HubServer`; `xorbs` by hash and `xet_files` by SHA-256 are what came through Xet. `storage_status`: what the
    storage answers to whatever is written, if anything but success; `reading_status` to whatever is read."""

    storage_status: int | None = None
    reading_status: int | None = None
    xorbs: dict[str, bytes] = field(default_factory=dict)
    xet_files: dict[str, XetFile] = field(default_factory=dict)

    def handler(self) -> type[_Handler]:
        return _XetHandler


class _XetHandler(_Handler):
    server_state: XetHubServer

    def do_GET(self) -> None:
        hub, path = self.server_state, urlsplit(self.path).path
        if hub.reading_status is not None and path.startswith("/cas/"):
            self.answer(hub.reading_status, b"the storage is unwell")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/xet-(read|write)-token/.+", path):
            self.log()
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if match[2] == "write" and hub.writers.get(token) != match[1].split("/")[0]:
                return self.refuse(403, "Forbidden")
            until = int(time.time()) + 3600
            self.answer(
                200,
                json.dumps({"casUrl": f"{hub.url}/cas", "accessToken": "xet", "exp": until}).encode(),
                {"X-Xet-Cas-Url": f"{hub.url}/cas", "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(until)},
            )
        elif match := re.fullmatch(r"/cas/v1/reconstructions/([0-9a-f]{64})", path):
            self.log()
            self.reconstruction(next(file for file in hub.xet_files.values() if file.name == match[1]))
        elif match := re.fullmatch(r"/cas/xorbs/([0-9a-f]{64})", path):
            self.log()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            assert asked is not None
            piece = hub.xorbs[match[1]][int(asked[1]) : int(asked[2]) + 1]
            self.answer(206, piece, {"Content-Range": f"bytes {asked[1]}-{asked[2]}/{len(hub.xorbs[match[1]])}"})
        else:
            super().do_GET()

    def do_POST(self) -> None:
        hub, path = self.server_state, urlsplit(self.path).path
        if not path.startswith(("/cas/", "/v1/telemetry")):
            return super().do_POST()
        self.log()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match = re.fullmatch(r"/cas/v1/xorbs/default/([0-9a-f]{64})", path)
        if hub.storage_status is not None and path.startswith("/cas/"):
            self.answer(hub.storage_status, b"the storage is unwell")
        elif match:
            new = hub.xorbs.setdefault(match[1], body) is body
            self.json({"was_inserted": new})
        elif path == "/cas/v1/shards":
            for file in files_of(body):
                hub.xet_files[bytes(file).hex()] = file
            self.json({"result": 1})
        else:
            self.refuse(404, "NotFound")

    def log(self) -> None:
        self.server_state.requests.append(Request(self.command, urlsplit(self.path).path, None, None))

    def commit(self, key: str, lines: list[dict[str, Any]]) -> None:
        hub = self.server_state
        hub.stored |= {digest: file for digest, file in hub.xet_files.items() if digest not in hub.stored}
        super().commit(key, lines)

    def resolve(self, key: str, repo: Repository, name: str) -> None:
        file = repo.files.get(name)
        if not isinstance(file, XetFile):
            return super().resolve(key, repo, name)
        size = str(sum(term[1] for term in file.terms))
        headers = {"X-Repo-Commit": repo.commit, "X-Linked-Etag": f'"{bytes(file).hex()}"', "X-Linked-Size": size}
        route = f"{self.server_state.url}/api/models/{key}/xet-read-token/{repo.commit}"
        headers |= {
            "X-Xet-Hash": file.name,
            "X-Xet-Refresh-Route": route,
            "Location": f"{self.server_state.storage_url}/{key}/{name}",
        }
        self.answer(302, b"", headers)

    def entry(self, name: str, data: bytes) -> dict[str, Any]:
        if not isinstance(data, XetFile):
            return super().entry(name, data)
        size = sum(term[1] for term in data.terms)
        lfs = {"oid": bytes(data).hex(), "size": size, "pointerSize": 130}
        oid = hashlib.sha1(data).hexdigest()
        return {"type": "file", "path": name, "size": size, "oid": oid, "lfs": lfs, "xetHash": data.name}

    def reconstruction(self, file: XetFile) -> None:
        """All terms of a file, and where each one's chunks lie in its xorb."""
        if not (self.headers.get("Range") or "bytes=0-").startswith("bytes=0-"):
            return self.answer(416, b"")
        terms: list[dict[str, Any]] = []
        places: dict[str, Any] = {}
        for xorb, size, first, end in file.terms:
            starts = chunk_starts(self.server_state.xorbs[xorb])
            chunks = {"start": first, "end": end}
            terms.append({"hash": xorb, "unpacked_length": size, "range": chunks})
            place = {"url": f"{self.server_state.url}/cas/xorbs/{xorb}", "range": chunks}
            url_range = {"start": starts[first], "end": starts[end] - 1}
            places.setdefault(xorb, []).append({**place, "url_range": url_range})
        self.json({"offset_into_first_range": 0, "terms": terms, "fetch_info": places})


def files_of(shard: bytes) -> list[XetFile]:
    """The files that a shard describes."""
    out, at = [], RECORD
    while shard[at : at + 32] != b"\xff" * 32:
        name, flags, count = shard[at : at + 32], *struct.unpack_from("<II", shard, at + 32)
        records = [shard[at + RECORD * (1 + n) : at + RECORD * (2 + n)] for n in range(count)]
        at += RECORD * (1 + count * (2 if flags & VERIFIED else 1))
        assert flags & DESCRIBED
        # written as four numbers of 64 bits, as all hashes are in text
        file = XetFile(bytes.fromhex(written(shard[at : at + 32])))
        file.name = written(name)
        file.terms = [(written(record[:32]), *struct.unpack_from("<III", record, 36)) for record in records]
        out.append(file)
        at += RECORD
    return out


def written(hash_: bytes) -> str:
    """A hash as routes have it: four little-endian numbers in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash_))


def chunk_starts(xorb: bytes) -> list[int]:
    """Where each chunk begins, and where the last one ends. A chunk has a head of 8 bytes: version, packed length (3),
    compression, length (3)."""
    out, at = [0], 0
    while at < len(xorb) and xorb[at] == 0:
        at += 8 + int.from_bytes(xorb[at + 1 : at + 4], "little")
        out.append(at)
    return out
