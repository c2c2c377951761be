"""A small Hub on loopback: repositories, LFS, commits, branches, rights, and faults on demand.

It answers what huggingface_hub asks, with the real Hub's paths, status codes and headers, and is as
strict: a commit that names an LFS file nobody uploaded is refused.
"""

import base64
import hashlib
import http.server
import json
import re
import socket
import struct
import sys
import threading
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

import yaml

WRITER, READER = "hf_writer", "hf_reader"  # tokens
ORGANISATION = "tiny"  # what WRITER may write to
LFS_BYTES = 4096  # regular files above this go to LFS, as *.safetensors always do


@dataclass
class Repo:
    """Files by commit and commits by branch; a file is (content, is_lfs)."""

    private: bool
    commits: dict[str, dict[str, tuple[bytes, bool]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, tuple[bytes, bool]]) -> str:
        """Adds a commit and moves the branch to it."""
        seed = f"{len(self.commits)}{sorted(files)}".encode()
        sha = hashlib.sha1(seed + b"".join(c for c, _ in files.values())).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


@dataclass
class Fault:
    """What goes wrong with requests to ``path``: an HTTP status, ``cut`` or ``cut after``."""

    method: str
    path: str  # regular expression
    action: int | str
    times: int


class HubServer:
    """Serves until ``close``; ``faults`` may be added to and ``seen`` read at any time."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            server_state = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Large files lie on another host, as they do for the real Hub: it gets no token.
        self.storage_url = f"http://localhost:{self._server.server_port}/storage"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, method: str, path: str, action: int | str, times: int = 1) -> None:
        self.faults.append(Fault(method, path, action, times))

    def files(self, repo: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """The files of a repository as they stand."""
        stored = self.repos[kind, repo]
        sha = stored.find(revision)
        return {name: content for name, (content, _) in stored.commits[sha or ""].items()}

    def count(self, method: str, path: str) -> int:
        """How many requests fit."""
        return sum(m == method and bool(re.search(path, p)) for m, p in self.seen)


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients die, that is no news
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        hub = self.server_state
        self.method = method
        raw = self.path.partition("?")[0]
        hub.seen.append((method, raw))
        fault = self._next_fault(method, raw)
        if fault is not None and fault.action == "cut":
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length // 2)
            self._hang_up()
            return
        self.body = self._read_body()
        if len(self.body) < int(self.headers.get("Content-Length") or 0):
            self._hang_up()  # the client died in the middle of it: nothing is done
            return
        if fault is not None and isinstance(fault.action, int):
            self._error(fault.action, "injected")
            return
        # The work is done, but the answer never arrives.
        self.lost = fault is not None and fault.action == "cut after"
        self._route(method, raw)

    def _next_fault(self, method: str, path: str) -> Fault | None:
        with self.server_state.lock:
            for fault in self.server_state.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def _hang_up(self) -> None:
        linger = struct.pack("ii", 1, 0)  # a reset, as when a cable is pulled
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    # Answers

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        if self.lost:
            self._hang_up()
            return
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.method != "HEAD":
            self.wfile.write(content)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode())

    def _error(self, status: int, message: str, code: str | None = None) -> None:
        self.lost = False
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    # Rights

    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _may_write(self, name: str) -> bool:
        token = self._token()
        if token not in (WRITER, READER):
            self._error(401, "Invalid credentials in Authorization header")
        elif token == READER or name.split("/")[0] != ORGANISATION:
            self._error(403, "you don't have the rights to do this")
        else:
            return True
        return False

    def _repo(self, kind: str, name: str) -> Repo | None:
        if self._token() not in (None, WRITER, READER):
            self._error(401, "Invalid credentials in Authorization header")
            return None
        repo = self.server_state.repos.get((kind, name))
        if repo is None or (repo.private and self._token() != WRITER):
            self._error(404 if self._token() else 401, "Repository not found", "RepoNotFound")
            return None
        return repo

    def _revision(self, repo: Repo, revision: str) -> str | None:
        sha = repo.find(urllib.parse.unquote(revision))
        if sha is None:
            self._error(404, "Invalid rev id", "RevisionNotFound")
        return sha

    # Requests

    def _route(self, method: str, path: str) -> None:
        routes: list[tuple[str, str, Any]] = [
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate_yaml),
            ("POST", r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
            ("POST", r"/api/(models|datasets)/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
            ("POST", r"/api/(models|datasets)/([^/]+/[^/]+)/branch/([^/]+)", self._branch),
            ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", self._info),
            ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", self._tree),
            ("POST", r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/([^/]+)", self._paths_info),
            ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._lfs_batch),
            ("PUT", r"/storage/upload/(\w+)", self._store),
            ("GET", r"/storage/(\w+)", self._fetch),
            ("HEAD", r"/storage/(\w+)", self._fetch),
            ("GET", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            ("HEAD", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ]
        for wanted, pattern, action in routes:
            match = re.fullmatch(pattern, path)
            if match and method == wanted:
                action(*match.groups())
                return
        self._error(404, f"no such page: {method} {path}")

    def _create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        kind = f"{wanted.get('type', 'model')}s"
        if not self._may_write(name):
            return
        prefix = "" if kind == "models" else f"{kind}/"
        url = f"{self.server_state.url}/{prefix}{name}"
        if (kind, name) in self.server_state.repos:
            self._json({"error": "You already created this repo", "url": url}, 409)
            return
        private = wanted.get("private") or wanted.get("visibility") == "private"
        repo = Repo(private=bool(private))
        repo.commit("main", {".gitattributes": (b"*.safetensors filter=lfs\n", False)})
        self.server_state.repos[kind, name] = repo
        self._json({"url": url, "name": name})

    def _validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        match = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        errors = []
        try:
            metadata = yaml.safe_load(match.group(1)) if match else None
        except yaml.YAMLError as error:
            metadata, errors = {}, [{"message": str(error)}]
        if metadata is None:
            errors.append({"message": "empty or missing yaml metadata in repo card"})
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _preupload(self, kind: str, name: str, revision: str) -> None:
        if not self._may_write(name) or (repo := self._repo(kind, name)) is None:
            return
        sha = self._revision(repo, revision)
        if sha is None:
            return
        files = []
        for wanted in json.loads(self.body)["files"]:
            lfs = wanted["path"].endswith((".safetensors", ".parquet"))
            lfs = lfs or wanted["size"] > LFS_BYTES
            known = repo.commits[sha].get(wanted["path"])
            files.append(
                {
                    "path": wanted["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": _oid(*known) if known else None,
                }
            )
        self._json({"files": files})

    def _lfs_batch(self, _: str | None, name: str) -> None:
        if not self._may_write(name):
            return
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server_state.objects:
                url = f"{self.server_state.storage_url}/upload/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": url}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._error(400, "the content fails its SHA-256")
            return
        self.server_state.objects[oid] = self.body
        self._json({})

    def _commit(self, kind: str, name: str, revision: str) -> None:
        if not self._may_write(name) or (repo := self._repo(kind, name)) is None:
            return
        branch = urllib.parse.unquote(revision)
        sha = self._revision(repo, branch)
        if sha is None:
            return
        files = dict(repo.commits[sha])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.server_state.objects:
                    self._error(400, f"LFS object of {value['path']} was not uploaded")
                    return
                files[value["path"]] = (self.server_state.objects[value["oid"]], True)
            elif item["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                self._error(404, "A file with this name doesn't exist", "EntryNotFound")
                return
        new = repo.commit(branch, files)
        url = f"{self.server_state.url}/{name}/commit/{new}"
        self._json({"success": True, "commitOid": new, "commitUrl": url, "hookOutput": ""})

    def _branch(self, kind: str, name: str, branch: str) -> None:
        if not self._may_write(name) or (repo := self._repo(kind, name)) is None:
            return
        branch = urllib.parse.unquote(branch)
        if branch in repo.branches:
            self._error(409, "Reference already exists")
            return
        repo.branches[branch] = repo.branches["main"]
        self._json({})

    def _info(self, kind: str, name: str, revision: str | None) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        sha = self._revision(repo, revision or "main")
        if sha is not None:
            siblings = [{"rfilename": file} for file in sorted(repo.commits[sha])]
            self._json({"id": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def _tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        sha = self._revision(repo, revision)
        if sha is None:
            return
        entries = _entries(repo.commits[sha])
        if folder:
            entries = [e for e in entries if e["path"].startswith(f"{folder}/")]
            if not entries:
                self._error(404, f"{folder} does not exist", "EntryNotFound")
                return
        self._json(entries)

    def _paths_info(self, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        sha = self._revision(repo, revision)
        if sha is not None:
            wanted = json.loads(self.body)["paths"]
            self._json([e for e in _entries(repo.commits[sha]) if e["path"] in wanted])

    def _resolve(self, prefix: str | None, name: str, revision: str, path: str) -> None:
        repo = self._repo("datasets" if prefix else "models", name)
        if repo is None:
            return
        sha = self._revision(repo, revision)
        if sha is None:
            return
        found = repo.commits[sha].get(urllib.parse.unquote(path))
        headers = {"X-Repo-Commit": sha}
        if found is None:
            self.lost = False
            self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
            return
        content, lfs = found
        if not lfs:
            length = str(len(content))
            etag = f'"{_git_oid(content)}"'
            self._send(200, content, {**headers, "ETag": etag, "Content-Length": length})
            return
        oid = hashlib.sha256(content).hexdigest()
        headers |= {
            "Location": f"{self.server_state.storage_url}/{oid}",
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{oid}"',
        }
        self._send(302, b"", headers)

    def _fetch(self, oid: str) -> None:
        content = self.server_state.objects[oid]
        headers = {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match:
            start, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
            self._send(206, content[start : last + 1], headers)
        else:
            self._send(200, content, {**headers, "Content-Length": str(len(content))})


def _entries(files: dict[str, tuple[bytes, bool]]) -> list[dict[str, Any]]:
    entries = []
    for path, (content, lfs) in sorted(files.items()):
        pointer = _pointer(content) if lfs else content
        entry = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(pointer)}
        if lfs:
            oid = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": len(pointer)}
        entries.append(entry)
    return entries


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _pointer(content: bytes) -> bytes:
    oid = hashlib.sha256(content).hexdigest()
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"
    return text.encode()


def _oid(content: bytes, lfs: bool) -> str:
    return hashlib.sha256(content).hexdigest() if lfs else _git_oid(content)
