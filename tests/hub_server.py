"""A hub on this machine: the part of the Hugging Face Hub's HTTP protocol that its client needs.

    python tests/hub_server.py --folder /tmp/hub
    export HF_ENDPOINT=http://localhost:8000 HF_HUB_DISABLE_XET=1 HF_TOKEN=hf_any
    finetune push runs/quick/full-seed42 me/reviews

Repositories with branches and commits, private ones too; small files inside a commit, large ones by LFS. A commit is
all or nothing. Data sets, whose names begin with `datasets/`, can be read. Faults can be injected into single requests.
There is no Xet and no git. Any token that begins with `hf_` is the one user's, except `hf_read`, which may not write,
and `hf_wrong`.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".onnx", ".parquet", ".model")  # what a new repository's .gitattributes names
FAULTS = ("500", "503", "reset", "lost", "slow", "401", "403", "404", "409")


def forms_of(secret: str) -> list[bytes]:
    """Return a secret as it stands in a file, and as in base64, at whichever of three bytes it begins there."""
    raw = secret.encode()
    encoded = [(base64.b64encode(bytes(shift) + raw), shift) for shift in range(3)]
    return [raw, *(code[4 * (shift > 0) : (shift + len(raw)) // 3 * 4] for code, shift in encoded)]


class RefusalError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str | None = None, **body):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


class HubServer(ThreadingHTTPServer):
    """The server and what it stores: file contents by their hash, and for each repository its branches and commits.

    Args:
        folder: Where everything is kept; a server that is started on it again goes on.
        port: 0 for a free one.
        user: Whose token is taken, and the only namespace that can be written.
        secret: What no request may hold but in its Authorization; `leaks` lists those that do.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0, user: str = "me", secret: str | None = None):
        super().__init__(("127.0.0.1", port), Handler)
        self.folder, self.user = Path(folder), user
        self.blobs = self.folder / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.index = self.folder / "repositories.json"
        self.repositories = json.loads(self.index.read_text()) if self.index.exists() else {}
        self.lock = threading.RLock()
        self.requests: list[str] = []
        self.faults: dict[int, str] = {}
        self.slow_seconds = 1.0
        self.secret_forms = [] if secret is None else forms_of(secret)
        self.leaks: list[str] = []

    @property
    def url(self) -> str:
        return f"http://localhost:{self.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator["HubServer"]:
        """Serve in a thread."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()

    def handle_error(self, request, client_address):
        """A client that went away is no news."""

    def inject(self, fault: str, at: int = 0, times: int = 1) -> None:
        """Let requests fail, counted from now, the next being 0.

        Args:
            fault: A status; or "reset": cut the connection before all of the request is read; "lost": do what is asked,
                and cut the connection instead of answering; "slow": answer after `slow_seconds`.
            at: The first that fails.
            times: How many.
        """
        assert fault in FAULTS
        with self.lock:
            self.faults = {len(self.requests) + at + step: fault for step in range(times)}

    def watch(self, request: "Handler", body: bytes) -> None:
        """Note a request that holds the secret where it should not."""
        headers = [f"{name}: {value}" for name, value in request.headers.items() if name.lower() != "authorization"]
        seen = body + "\n".join([request.path, *headers]).encode()
        if any(form in seen for form in self.secret_forms):
            self.leaks.append(f"{request.command} {request.path}")

    def count_request(self, line: str) -> str | None:
        with self.lock:
            self.requests.append(line)
            return self.faults.pop(len(self.requests) - 1, None)

    def add_repository(self, name: str, folder: Path, commit: str | None = None, private: bool = False) -> str:
        """Put a folder's files there as the first commit of a repository; gives the commit."""
        with self.lock:
            self.repositories[name] = {"private": private, "branches": {"main": ""}, "commits": {}}
            return self.add_commit(name, folder, commit=commit)

    def add_commit(self, name: str, folder: Path, branch: str = "main", commit: str | None = None) -> str:
        """Put a folder's files in place of those of a branch; gives the commit."""
        files = {}
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                files[path.relative_to(folder).as_posix()] = self.store(path.read_bytes(), path.name)
        with self.lock:
            return self.commit(name, branch, files, f"Commit to {branch}", commit)

    def store(self, content: bytes, name: str) -> dict:
        sha256 = hashlib.sha256(content).hexdigest()
        self.store_blob(sha256, content)
        large = name.endswith(LARGE) or len(content) > 10_000_000
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"sha256": sha256, "oid": sha256 if large else oid, "size": len(content), "lfs": large}

    def store_blob(self, sha256: str, content: bytes) -> None:
        aside = self.blobs / f"{sha256}.{threading.get_ident()}"
        aside.write_bytes(content)
        aside.rename(self.blobs / sha256)

    def commit(self, name: str, branch: str, files: dict, message: str, oid: str | None = None) -> str:
        repository = self.repositories[name]
        parent = repository["branches"].get(branch)
        state = json.dumps([parent, files, message, len(repository["commits"])], sort_keys=True)
        oid = oid or hashlib.sha1(state.encode()).hexdigest()
        repository["commits"][oid] = {"files": files, "parent": parent or None, "message": message}
        repository["branches"][branch] = oid
        self.save()
        return oid

    def save(self) -> None:
        aside = self.index.with_suffix(".partial")
        aside.write_text(json.dumps(self.repositories))
        aside.rename(self.index)

    def files_of(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the content of every file of a revision, by path."""
        repository = self.repositories[name]
        commit = repository["commits"][repository["branches"].get(revision, revision)]
        return {path: (self.blobs / file["sha256"]).read_bytes() for path, file in commit["files"].items()}


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_):
        """The server keeps its own list."""

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def answer(self):
        parts = urlsplit(self.path)
        path, self.query = parts.path, parse_qs(parts.query)
        fault = self.server.count_request(f"{self.command} {path}")
        if fault == "reset":
            self.server.watch(self, self.read_body(partly=True))
            return self.cut()
        body = self.read_body()
        self.server.watch(self, body)
        if fault == "slow":
            threading.Event().wait(self.server.slow_seconds)
        try:
            if fault is not None and fault.isdigit():
                raise RefusalError(int(fault), "injected", url=f"{self.server.url}/me/injected")
            found = self.route(path, body)
        except RefusalError as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            return self.send(refusal.status, {"error": refusal.message, **refusal.body}, headers)
        if fault == "lost":
            return self.cut()
        if isinstance(found, tuple):
            self.send(*found)
        else:
            self.send(200, found)

    def read_body(self, partly: bool = False) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
                if partly:
                    break
            else:
                self.rfile.readline()
            return b"".join(chunks)
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length // 2 if partly else length)

    def cut(self):
        """End the connection with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        self.rfile = self.wfile = open("/dev/null", "r+b", buffering=0)  # noqa: SIM115, PTH123

    def send(self, status, content, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, str(value))
        self.send_header("Content-Length", (headers or {}).get("X-Linked-Size", len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self, path: str, body: bytes):
        for method, pattern, handle in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                values = {name: value and unquote(value) for name, value in match.groupdict().items()}
                return handle(self, body=body, **values)
        raise RefusalError(404, f"{self.command} {path} is not part of this hub")

    def who(self) -> str | None:
        """Find whose token came along: "read" and "write" are the user's, None is nobody's."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == "hf_wrong" or (token and not token.startswith("hf_")):
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return {"": None, "hf_read": "read"}.get(token, "write")

    def may_write(self, name: str) -> None:
        who = self.who()
        if who is None:
            raise RefusalError(401, "Invalid username or password.")
        if who == "read" or name.split("/")[0] != self.server.user:
            raise RefusalError(403, "You don't have the rights to write there")

    def repository(self, name: str) -> dict:
        found = self.server.repositories.get(name)
        who = self.who()
        owner = name.removeprefix("datasets/").split("/")[0]
        if found is None or (found["private"] and (who is None or owner != self.server.user)):
            raise RefusalError(404 if who else 401, "Repository not found", "RepoNotFound")
        return found

    def find_commit(self, name: str, revision: str) -> tuple[str, dict]:
        repository = self.repository(name)
        oid = repository["branches"].get(revision, revision)
        if oid not in repository["commits"]:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, repository["commits"][oid]

    def get_status(self, body):
        return {"repositories": sorted(self.server.repositories)}

    def get_whoami(self, body):
        who = self.who()
        if who is None:
            raise RefusalError(401, "Invalid username or password.")
        access = {"accessToken": {"displayName": "test", "role": who}}
        return {"type": "user", "name": self.server.user, "orgs": [], "auth": access}

    def post_create(self, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or self.server.user}/{asked['name']}"
        self.may_write(name)
        with self.server.lock:
            if name in self.server.repositories:
                raise RefusalError(409, "You already created this model repo", url=f"{self.server.url}/{name}")
            private = asked.get("visibility") == "private" or asked.get("private", False)  # the latter up to 1.x
            self.server.repositories[name] = {"private": private, "branches": {}, "commits": {}}
            content = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE).encode()
            self.server.commit(name, "main", {".gitattributes": self.server.store(content, "")}, "initial commit")
        return {"url": f"{self.server.url}/{name}", "name": name}

    def post_validate_yaml(self, body):
        content = json.loads(body)["content"]
        if not re.match(r"---\n(.*\n)*?---\n", content):
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        return {"errors": [], "warnings": []}

    def post_preupload(self, body, name, revision):
        self.may_write(name)
        files = self.find_commit(name, revision)[1]["files"]
        answers = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(LARGE) or file["size"] > 10_000_000
            answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if file["path"] in files:
                answer["oid"] = files[file["path"]]["oid"]
            answers.append(answer)
        return {"files": answers}

    def post_lfs_batch(self, body, name):
        self.may_write(name)
        self.repository(name)
        objects = []
        for wanted in json.loads(body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if not (self.server.blobs / wanted["oid"]).exists():
                upload = {"href": f"{self.server.url}/upload/{wanted['oid']}"}
                verify = {"href": f"{self.server.url}/verify/{wanted['oid']}"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def put_upload(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusalError(400, "The content is not that of the hash")
        self.server.store_blob(oid, body)
        return b""

    def post_verify(self, body, oid):
        path = self.server.blobs / oid
        if not path.exists() or path.stat().st_size != json.loads(body)["size"]:
            raise RefusalError(404, "Object not found")
        return {}

    def post_commit(self, body, name, revision):
        self.may_write(name)
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        with self.server.lock:
            head, commit = self.find_commit(name, revision)
            if revision not in self.repository(name)["branches"]:
                raise RefusalError(404, f"Invalid branch: {revision}", "RevisionNotFound")
            if header.get("parentCommit", head) != head:
                raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(commit["files"])
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = self.server.store(base64.b64decode(value["content"]), "")
                elif line["key"] == "lfsFile":
                    blob = self.server.blobs / value["oid"]
                    if not blob.exists():
                        raise RefusalError(400, f"{value['path']} was not uploaded")
                    size = blob.stat().st_size
                    files[value["path"]] = {"sha256": value["oid"], "oid": value["oid"], "size": size, "lfs": True}
                elif line["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                    raise RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")
            oid = self.server.commit(name, revision, files, header["summary"])
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"}

    def post_branch(self, body, name, branch):
        self.may_write(name)
        with self.server.lock:
            branches = self.repository(name)["branches"]
            if branch in branches:
                raise RefusalError(409, f"Reference already exists: {branch}")
            start = (json.loads(body) if body else {}).get("startingPoint") or "main"
            branches[branch] = self.find_commit(name, start)[0]
            self.server.save()
        return {}

    def get_refs(self, body, name):
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": oid}
            for branch, oid in self.repository(name)["branches"].items()
        ]
        return {"branches": branches, "converts": [], "tags": []}

    def get_info(self, body, name, revision):
        oid, commit = self.find_commit(name, revision or "main")
        siblings = [{"rfilename": path} for path in commit["files"]]
        private = self.repository(name)["private"]
        name = name.removeprefix("datasets/")
        return {"id": name, "modelId": name, "sha": oid, "siblings": siblings, "private": private, "tags": []}

    def get_tree(self, body, name, revision, folder):
        files = self.find_commit(name, revision)[1]["files"]
        prefix = f"{folder}/" if folder else ""
        below = {path.removeprefix(prefix): file for path, file in files.items() if path.startswith(prefix)}
        if folder and not below:
            raise RefusalError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        if self.query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            return [_entry(f"{prefix}{path}", file) for path, file in below.items()]
        folders = dict.fromkeys(path.split("/")[0] for path in below if "/" in path)
        return [_entry(f"{prefix}{path}") for path in folders] + [
            _entry(f"{prefix}{path}", file) for path, file in below.items() if "/" not in path
        ]

    def post_paths_info(self, body, name, revision):
        files = self.find_commit(name, revision)[1]["files"]
        wanted = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
        return [_entry(path, files[path]) for path in wanted if path in files] + [
            _entry(path) for path in wanted if any(file.startswith(f"{path}/") for file in files)
        ]

    def get_file(self, body, name, revision, file):
        oid, commit = self.find_commit(name, revision)
        if file not in commit["files"]:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        entry = commit["files"][file]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            return 200, b"", {**headers, "X-Linked-Etag": f'"{entry["oid"]}"', "X-Linked-Size": entry["size"]}
        content = (self.server.blobs / entry["sha256"]).read_bytes()
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start and int(start[1]) < len(content):
            headers["Content-Range"] = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
            return 206, content[int(start[1]) :], headers
        return 200, content, headers


def _entry(path: str, file: dict | None = None) -> dict:
    """Describe a file or a folder of a tree."""
    if file is None:
        return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
    entry = {"type": "file", "oid": file["oid"], "size": file["size"], "path": path}
    return entry | ({"lfs": {"oid": file["sha256"], "size": file["size"], "pointerSize": 134}} if file["lfs"] else {})


NAME = r"(?P<name>(datasets/)?[^/]+/[^/]+)"
API = rf"/api/(models/|(?=datasets/)){NAME}"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    (("GET", "HEAD"), "/", Handler.get_status),
    (("GET",), "/api/whoami-v2", Handler.get_whoami),
    (("POST",), "/api/repos/create", Handler.post_create),
    (("POST",), "/api/validate-yaml", Handler.post_validate_yaml),
    (("POST",), f"{API}/preupload/{REVISION}", Handler.post_preupload),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", Handler.post_lfs_batch),
    (("PUT",), "/upload/(?P<oid>[0-9a-f]{64})", Handler.put_upload),
    (("POST",), "/verify/(?P<oid>[0-9a-f]{64})", Handler.post_verify),
    (("POST",), f"{API}/commit/{REVISION}", Handler.post_commit),
    (("POST",), f"{API}/branch/(?P<branch>[^/]+)", Handler.post_branch),
    (("GET",), f"{API}/refs", Handler.get_refs),
    (("GET",), f"{API}/tree/{REVISION}(/(?P<folder>.+))?", Handler.get_tree),
    (("POST",), f"{API}/paths-info/{REVISION}", Handler.post_paths_info),
    (("GET",), f"{API}(/revision/{REVISION})?", Handler.get_info),
    (("GET", "HEAD"), f"/{NAME}/resolve/{REVISION}/(?P<file>.+)", Handler.get_file),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="hub", help="where repositories are kept (default: hub)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--user", default="me", help="the only namespace that can be written (default: me)")
    arguments = parser.parse_args()
    server = HubServer(Path(arguments.folder), arguments.port, arguments.user)
    with server.running():
        print(f"a hub at {server.url}, its files in {arguments.folder}; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
