"""A stand-in for the Hugging Face Hub on loopback: what its real client asks for to make a
repository, commit to it, list it and read it. Files over 100 bytes go by Git LFS, as on the Hub by
their size or kind."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_ABOVE = 100


class Hub:
    """``repos``: by "models/OWNER/NAME" the files by path; ``commits`` the number of commits."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: dict[str, int] = {}
        self.blobs: dict[str, bytes] = {}
        self.tampered: dict[str, bytes] = {}  # what is sent in place of a file, by its path
        self.url = ""

    def sha(self, repo: str) -> str:
        return hashlib.sha1(f"{repo} {self.commits[repo]}".encode()).hexdigest()


@contextmanager
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._resolve(body=False)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/.+)?", path):
            repo = f"{found[1]}/{found[2]}"
            if repo not in self.hub.repos:
                return self._json({"error": "Repository not found"}, 404, "RepoNotFound")
            files = [{"rfilename": name} for name in self.hub.repos[repo]]
            return self._json(
                {
                    "id": found[2],
                    "sha": self.hub.sha(repo),
                    "private": self.hub.private[repo],
                    "siblings": files,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                }
            )
        found = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path)
        if found:
            folder = f"{found[4]}/" if found[4] else ""
            repo = self.hub.repos.get(f"{found[1]}/{found[2]}", {})
            inside = [name for name in repo if name.startswith(folder)]
            if not inside:
                return self._json({"error": "Entry not found"}, 404, "EntryNotFound")
            here: dict[str, dict[str, object]] = {}
            for name in inside:
                first, slash, _ = name[len(folder) :].partition("/")
                here[first] = {
                    "type": "directory" if slash else "file",
                    "path": folder + first,
                    "size": 0 if slash else len(repo[name]),
                    "oid": hashlib.sha1(repo[name]).hexdigest(),
                }
            return self._json(list(here.values()))
        return self._resolve(body=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            repo = f"{asked.get('type', 'model')}s/{name}"
            if repo in self.hub.repos:
                return self._json({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
            self.hub.repos[repo] = {".gitattributes": b"*.safetensors filter=lfs\n"}
            self.hub.private[repo] = asked.get("private", asked.get("visibility") == "private")
            self.hub.commits[repo] = 0
            return self._json({"url": f"{self.hub.url}/{name}", "name": name})
        if found := re.fullmatch(r"/api/(models|datasets)/(.+?)/preupload/.+", path):
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > LFS_ABOVE else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in files
            ]
            return self._json({"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    **one,
                    "actions": {
                        "upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}}
                    },
                }
                for one in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/(models|datasets)/(.+?)/commit/.+", path):
            return self._commit(f"{found[1]}/{found[2]}", body)
        if found := re.fullmatch(r"/api/(models|datasets)/(.+?)/paths-info/.+", path):
            repo = self.hub.repos.get(f"{found[1]}/{found[2]}", {})
            wanted = parse_qs(body.decode()).get("paths", [])
            return self._json(
                [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(repo[name]),
                        "oid": hashlib.sha1(repo[name]).hexdigest(),
                    }
                    for name in wanted
                    if name in repo
                ]
            )
        return self._json({"error": f"POST {path} is not stood in for"}, 501)

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if hashlib.sha256(body).hexdigest() != oid:
            return self._json({"error": "other bytes"}, 400)
        self.hub.blobs[oid] = body
        return self._json({})

    def _commit(self, repo: str, body: bytes) -> None:
        files = dict(self.hub.repos[repo])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                if value.get("parentCommit") not in (None, self.hub.sha(repo)):
                    return self._json({"error": "a commit has come between"}, 412)
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                return self._json({"error": f"{item['key']} is not stood in for"}, 501)
        self.hub.repos[repo] = files
        self.hub.commits[repo] += 1
        sha = self.hub.sha(repo)
        url = f"{self.hub.url}/{repo.partition('/')[2]}/commit/{sha}"
        return self._json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _resolve(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo = f"{'datasets' if found and found[1] else 'models'}/{found[2] if found else ''}"
        if found is None or found[4] not in self.hub.repos.get(repo, {}):
            return self._json({"error": "Entry not found"}, 404, "EntryNotFound", body)
        whole = self.hub.tampered.get(found[4], self.hub.repos[repo][found[4]])
        data, status = whole, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            data = whole[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None]
            status = 206
        self.send_response(status)
        if status == 206 and asked:
            end = int(asked[1]) + len(data) - 1
            self.send_header("Content-Range", f"bytes {asked[1]}-{end}/{len(whole)}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(whole).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.hub.sha(repo))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _json(
        self, content: object, status: int = 200, code: str | None = None, body: bool = True
    ) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if body:
            self.wfile.write(data)
