"""A Hub of one's own for tests: repositories in memory behind the parts of the API that pushing an adapter uses.

It follows what the Hub documents of its HTTP API (create, info, preupload, git-lfs batch, commit), not the client's code.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "standin" * 5


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"lfs"}})
    commits: list[tuple[str, list[str]]] = field(default_factory=list)
    """Branch and the names that the commit changed."""


class Hub:
    """`requests`: method and path of everything that was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.requests: list[str] = []
        self.break_after: int | None = None
        """So many large files are taken, then the connection ends."""
        self.refuse_commits = 0
        """So many commits are not made."""
        self.hold_commit: threading.Event | None = None
        """A commit waits for it."""
        handler = type("Bound", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        return {path: data for path, data in self.repos[name].branches[branch].items() if path != ".gitattributes"}


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", "tokenizer.json"))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _say(self, document: Any, status: int = 200, **headers: str) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._say({"error": code}, 404, X_Error_Code=code)

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        body = self._body()
        self.hub.requests.append(f"{self.command} {path}")
        if path.startswith("/objects/"):
            return self._take(path.rsplit("/", 1)[-1], body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._say({"error": "who is this"}, 401)
        if path == "/api/whoami-v2":
            return self._say({"name": "me", "type": "user"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._say({"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        parts = [unquote(part) for part in path.removeprefix("/api/models/").split("/")]
        name, rest = "/".join(parts[:2]), parts[2:]
        if not path.startswith("/api/models/") or name not in self.hub.repos:
            return self._missing("RepoNotFound")
        return self._in_repo(name, self.hub.repos[name], rest, body)

    def _in_repo(self, name: str, repo: Repo, rest: list[str], body: bytes) -> None:
        action, branch = rest[0] if rest else "revision", rest[1] if len(rest) > 1 else "main"
        if action == "branch":
            repo.branches.setdefault(branch, dict(repo.branches["main"]))
            return self._say({})
        if branch not in repo.branches:
            return self._missing("RevisionNotFound")
        tree = repo.branches[branch]
        if action == "revision":
            return self._say(self._info(name, repo, tree))
        if action == "preupload":
            return self._preupload(tree, json.loads(body))
        if action == "commit":
            return self._commit(name, repo, branch, body)
        return self._missing("EntryNotFound")

    def _info(self, name: str, repo: Repo, tree: dict[str, bytes]) -> dict[str, Any]:
        siblings = []
        for path, data in tree.items():
            entry: dict[str, Any] = {"rfilename": path}
            if "blobs" in parse_qs(urlsplit(self.path).query):
                entry |= {"size": len(data), "blobId": git_sha1(data)}
                if is_large(path):
                    sha256 = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {"id": name, "sha": "0" * 40, "private": repo.private, "siblings": siblings, "tags": []}

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        known = name in self.hub.repos
        if not known:
            private = wanted.get("private") is True or wanted.get("visibility") == "private"
            self.hub.repos[name] = Repo(private=private)
        self._say({"url": f"{self.hub.url}/{name}"}, 409 if known else 200)

    def _preupload(self, tree: dict[str, bytes], wanted: dict[str, Any]) -> None:
        found = []
        for file in wanted["files"]:
            path, mode = file["path"], "lfs" if is_large(file["path"]) else "regular"
            entry = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in tree:
                data = tree[path]
                entry["oid"] = hashlib.sha256(data).hexdigest() if mode == "lfs" else git_sha1(data)
            found.append(entry)
        self._say({"files": found})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{item['oid']}"}}
            objects.append(entry)
        self._say({"transfer": "basic", "objects": objects})

    def _take(self, oid: str, body: bytes) -> None:
        if self.hub.break_after is not None and len(self.hub.uploads) >= self.hub.break_after:
            return self._say({"error": "the line is gone"}, 400)
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.uploads.append(oid)
        self.hub.objects[oid] = body
        return self._say({})

    def _commit(self, name: str, repo: Repo, branch: str, body: bytes) -> None:
        if self.hub.hold_commit is not None:
            self.hub.hold_commit.wait(60)
        if self.hub.refuse_commits:
            self.hub.refuse_commits -= 1
            return self._say({"error": "gone away"}, 500)
        changed = []
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repo.branches[branch][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.branches[branch][value["path"]] = self.hub.objects[value["oid"]]
            else:
                assert line["key"] == "header", line
                continue
            changed.append(value["path"])
        repo.commits.append((branch, changed))
        oid = f"{len(repo.commits):040x}"
        return self._say({"success": True, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})
