"""A server on 127.0.0.1 that speaks as much of the Hugging Face Hub's protocol as is needed here.

Repositories are commits in memory. It answers what huggingface_hub asks for a model's commit and
its files (small ones at once, large ones behind a redirect, as from a content network), and takes
new commits. It answers a bounded number of requests, to this machine alone, and ends with its
context.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["FakeHub", "serving"]

MOST = 2000
"""Requests, after which it answers nothing more."""
LARGE = (".safetensors", ".bin", ".png")
"""What the Hub keeps as large files."""


class FakeHub:
    """The repositories, who may see them, and what was asked.

    Attributes:
        url: the address, for ``HF_ENDPOINT``.
        network: the same, as of another host, which gives the large files.
        repos: of each repository its commits, each with its files.
        refs: of each repository its branches and tags.
        private: repositories that only a token sees.
        gated: repositories whose files only a token gets.
        tokens: by token, whether it may write.
        breaks: how many times the connection breaks half-way through a file of that name.
        failing: a status that every request is answered with, if any.
        asked: method and path of every request.
        visibility: what was asked for when a repository was made.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.network = url.replace("127.0.0.1", "localhost")
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.tokens: dict[str, bool] = {"reads": False, "writes": True}
        self.breaks: dict[str, int] = {}
        self.failing: int | None = None
        self.asked: list[tuple[str, str]] = []
        self.agents: set[str] = set()
        self.visibility: dict[str, str | None] = {}
        self.large: dict[str, bytes] = {}

    def commit(self, repo: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit of these files, at the end of a branch."""
        known = self.repos.setdefault(repo, {})
        text = repr((repo, branch, len(known), sorted(files.items())))
        commit = hashlib.sha1(text.encode()).hexdigest()
        known[commit] = dict(files)
        self.refs.setdefault(repo, {})[branch] = commit
        return commit

    def add(self, repo: str, folder: Path, branch: str = "main") -> str:
        """The same of all files in a folder."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return self.commit(repo, files, branch)

    def fetched(self) -> list[str]:
        """The files that were asked for, in this order; ``asked`` is emptied."""
        files = [
            path.partition("/resolve/")[2].partition("/")[2]
            for method, path in self.asked
            if method == "HEAD" and "/resolve/" in path
        ]
        self.asked.clear()
        return files


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    timeout = 5

    def log_message(self, *_: object) -> None:
        pass

    # -- requests -------------------------------------------------------------------------------

    def _handle(self) -> None:
        hub, path = self.hub, urllib.parse.unquote(self.path.partition("?")[0])
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        if len(hub.asked) >= MOST:
            return self._answer(410, b"")
        hub.asked.append((self.command, path))
        hub.agents.add(self.headers.get("User-Agent", ""))
        if hub.failing is not None:
            return self._answer(hub.failing, b"no service today")
        for pattern, method in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match is not None:
                return method(self, body, **match.groupdict())
        return self._refuse(404, "", f"no such page: {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _info(self, body: bytes, repo: str, revision: str | None = None) -> None:
        found = self._found(repo, revision or "main")
        if found is not None:
            commit, files = found
            names = [{"rfilename": name} for name in files]
            seen = {"private": repo in self.hub.private}
            self._json({"id": repo, "modelId": repo, "sha": commit, "siblings": names, **seen})

    def _tree(self, body: bytes, repo: str, revision: str) -> None:
        found = self._found(repo, revision)
        if found is not None:
            self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(name, data)}
                    for name, data in found[1].items()
                ]
            )

    def _resolve(self, body: bytes, repo: str, revision: str, file: str) -> None:
        found = self._found(repo, revision)
        if found is None:
            return None
        commit, files = found
        headers = {"X-Repo-Commit": commit}
        if repo in self.hub.gated and self._may() is None:
            return self._refuse(401, "GatedRepo", "Access to model is restricted", headers)
        if file not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found", headers)
        data = files[file]
        if file.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            self.hub.large[digest] = data
            headers |= {
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{self.hub.network}/large/{digest}?name={file}",
            }
            return self._answer(302, b"", headers)
        return self._data(file, data, {**headers, "ETag": f'"{_etag(file, data)}"'})

    def _large(self, body: bytes, digest: str) -> None:
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != digest:
                return self._refuse(400, "", "another checksum")
            self.hub.large[digest] = body
            return self._answer(200, b"")
        name = self.path.partition("?name=")[2]
        return self._data(
            urllib.parse.unquote(name), self.hub.large[digest], {"ETag": f'"{digest}"'}
        )

    # -- new commits ----------------------------------------------------------------------------

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if not self._may():
            return self._refuse(403 if self._token() else 401, "", "You don't have the rights")
        if repo in self.hub.repos:
            return self._refuse(409, "", "You already created this model repo")
        self.hub.visibility[repo] = asked.get("visibility")
        self.hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": "1"})

    def _yaml(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes, repo: str, revision: str) -> None:
        if not self._may():
            return self._refuse(403, "", "You don't have the rights")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return self._json({"files": files})

    def _batch(self, body: bytes, repo: str) -> None:
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}},
            }
            for one in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, body: bytes, repo: str, revision: str) -> None:
        if not self._may():
            return self._refuse(403, "", "You don't have the rights")
        files = dict(self.hub.repos[repo][self.hub.refs[repo][revision]])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value: Any = entry["value"]
            if entry["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(repo, files, revision)
        url = f"{self.hub.url}/{repo}/commit/{commit}"
        return self._json({"success": True, "commitOid": commit, "commitUrl": url})

    # -- answers --------------------------------------------------------------------------------

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _may(self) -> bool | None:
        """Whether the request's token may write; None where it has no token that is known."""
        return self.hub.tokens.get(self._token())

    def _found(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        hub = self.hub
        if repo not in hub.repos or (repo in hub.private and self._may() is None):
            self._refuse(404 if self._may() is not None else 401, "RepoNotFound", "Not found")
            return None
        commit = hub.refs[repo].get(revision, revision)
        if commit not in hub.repos[repo]:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit, hub.repos[repo][commit]

    def _data(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        first = 0
        status = 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is not None:
            first, status = int(asked[1]), 206
            headers |= {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        broken = self.command == "GET" and self.hub.breaks.get(name, 0) > 0
        part = data[first:]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(part))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if broken:
            self.hub.breaks[name] -= 1
            self.close_connection = True
            part = part[: len(part) // 2]
        self.wfile.write(part)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        said = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._answer(status, json.dumps({"error": message}).encode(), {**(headers or {}), **said})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = (
    (r"/large/(?P<digest>\w+)", _Handler._large),
    (rf"/api/models/{_REPO}(?:/revision/(?P<revision>.+))?", _Handler._info),
    (rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", _Handler._tree),
    (rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler._resolve),
    (r"/api/repos/create", _Handler._create),
    (r"/api/validate-yaml", _Handler._yaml),
    (rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", _Handler._preupload),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler._batch),
    (rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", _Handler._commit),
)


def _etag(name: str, data: bytes) -> str:
    """Git's own checksum of a small file, SHA-256 of a large one."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub, for as long as the context lasts."""

    class Handler(_Handler):
        pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Handler.hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
