"""A hub on this machine: the part of its API by which repositories are found, read and written, over folders."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """`repos` maps owner/name to a folder, the same at every commit; `main` is the last of `commits`.

    Of those that are `gated` no file is given. None can be made; a commit to one lands in its folder.

    `asked` holds (method, path, range) of every request; `sent` counts the bytes of files.
    """

    daemon_threads = True

    def __init__(self, repos: dict[str, Path], gated: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repos, self.gated, self.asked, self.sent = repos, gated, [], 0
        self.commits = [COMMIT]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub(repos: dict[str, Path], gated: tuple[str, ...] = ()) -> Iterator[Hub]:
    server = Hub(repos, gated)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the other side

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            if name in self.server.repos:
                return self._send(409, json.dumps({"url": f"{self.server.url}/{name}"}).encode(), {})
            return self._fail(403, "Forbidden")
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        match = re.fullmatch(r"(?:/api)?(?:/datasets|/models)?/([^/]+/[^/]+)(?:/([a-z-]+)/([^/]+))?(?:/(.*))?", path)
        repo, verb, revision, rest = match.groups() if match else ("", "", "", "")
        if repo not in self.server.repos:
            return self._fail(404, "RepoNotFound")
        if revision not in (None, "main", *self.server.commits):
            return self._fail(404, "RevisionNotFound")
        folder, commit = (
            self.server.repos[repo],
            revision if revision not in (None, "main") else self.server.commits[-1],
        )
        if not path.startswith("/api/"):
            return self._fail(403, "GatedRepo") if repo in self.server.gated else self._file(folder / rest, revision)
        if verb == "preupload":
            modes = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self._json({"files": [mode | {"shouldIgnore": False} for mode in modes]})
        if verb == "commit":
            return self._commit(repo, body)
        if verb == "tree":
            return self._json([_entry(file, folder) for file in sorted(folder.glob(f"{rest or ''}/**/*".lstrip("/")))])
        if verb == "paths-info":
            names = re.findall(r"paths=([^&]*)", body) or json.loads(body or "{}").get("paths", [])
            files = [folder / unquote(name) for name in names]
            return self._json([_entry(file, folder) for file in files if file.exists()])
        siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in folder.rglob("*") if file.is_file()]
        return self._json({"id": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings})

    do_HEAD = do_POST = do_GET

    def _commit(self, repo: str, body: str) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                file = self.server.repos[repo] / line["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        where = f"{self.server.url}/{repo}/commit/{COMMIT}"
        self._json({"commitUrl": where, "commitOid": COMMIT, "pullRequestUrl": None})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, code: int, word: str) -> None:
        self._send(code, b"{}", {"X-Error-Code": word, "X-Error-Message": word, "Content-Type": "application/json"})

    def _file(self, file: Path, revision: str) -> None:
        if not file.is_file():
            return self._fail(404, "EntryNotFound")
        data, code, headers = (
            file.read_bytes(),
            200,
            {"ETag": f'"{_oid(file)}"', "X-Repo-Commit": revision},
        )
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            code, data = 206, data[first : last + 1]
        if self.command != "HEAD":
            self.server.sent += len(data)
        return self._send(code, data, headers | {"Accept-Ranges": "bytes"})

    def _send(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(file: Path, folder: Path) -> dict:
    name = file.relative_to(folder).as_posix()
    if file.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": _oid(file), "size": file.stat().st_size}


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
