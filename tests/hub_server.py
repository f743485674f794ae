"""A small Hugging Face Hub on loopback: real enough for the real client to push and download.

    with HubServer() as hub:
        hub.use(monkeypatch, token=hub.token)
        hub.fail("/commit/", 403)
        ...
        assert hub.repos["shop/words"].files["README.md"] == b"..."

Repos live in memory. To teach it something new, write a handler and add it to `ROUTES`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import unquote

import pytest
import yaml

REGULAR_LIMIT = 100_000  # bytes; a larger file goes to LFS, as all weights do
# In place of a status: close the connection without an answer; the same, but only after doing
# what was asked; say nothing at all, for as long as somebody waits.
DROP, LOSE_ANSWER, STALL = 0, -1, -2
SIGNATURE = "X-Amz-Signature=5ignedSecret"  # in the address that an upload goes to


@dataclass(frozen=True)
class StoredFile:
    """A file in a commit."""

    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """What the client compares its own file with: SHA-256 on LFS, git's hash otherwise."""
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """All files as of a commit, by path."""

    oid: str
    message: str
    tree: dict[str, StoredFile]


@dataclass
class Repo:
    """A model repo, which begins with a commit of `.gitattributes`, as on the Hub."""

    private: bool
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)  # name -> commit

    def __post_init__(self) -> None:
        self.commit("initial commit", {".gitattributes": StoredFile(b"*.safetensors lfs\n", False)})

    def commit(self, message: str, tree: dict[str, StoredFile]) -> Commit:
        seed = f"{len(self.commits)} {message} {sorted((n, f.oid) for n, f in tree.items())}"
        self.commits.append(Commit(hashlib.sha1(seed.encode()).hexdigest(), message, tree))
        return self.commits[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """Path -> content now, without the Hub's own `.gitattributes`."""
        tree = self.commits[-1].tree
        return {path: file.content for path, file in tree.items() if path != ".gitattributes"}


@dataclass(frozen=True)
class Answer:
    """A body, which is sent as JSON unless it is bytes."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An error as the Hub words it."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer({"error": message}, status, headers)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request whose "METHOD path" has `part` in it.

    Attributes:
        status: of the answer, or `DROP`, `LOSE_ANSWER` or `STALL`.
        headers: of the answer, such as Retry-After.
        page: the body, where it is not the Hub's own JSON.
    """

    part: str
    status: int
    headers: dict[str, str]
    page: bytes | None

    @property
    def answer(self) -> Answer | None:
        if self.status == DROP:
            return None
        if self.page is not None:
            return Answer(self.page, self.status, self.headers)
        refusal = Refusal(self.status, f"fault {self.status}")
        return Answer(refusal.answer.body, self.status, refusal.answer.headers | self.headers)


@dataclass(frozen=True)
class Request:
    """What was asked of a hub; `names` are the groups of the route's pattern."""

    hub: "HubServer"
    names: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def repo(self) -> Repo:
        """The repo that it is about."""
        try:
            return self.hub.repos[self.names["repo"]]
        except KeyError:
            raise Refusal(404, "Repository not found", "RepoNotFound") from None

    @property
    def commit(self) -> Commit:
        """The commit that its revision, `main`, a tag or a hash, stands for."""
        revision = self.names["revision"] or "main"
        revision = self.repo.tags.get(revision, revision)
        for commit in reversed(self.repo.commits):
            if revision in ("main", commit.oid):
                return commit
        raise Refusal(404, f"no revision {revision}", "RevisionNotFound")


class HubServer:
    """The server; in a `with` block it answers at `endpoint`.

    Attributes:
        token: the one token it takes.
        repos: id -> repo.
        requests: "METHOD path" of all requests, without those of the client's own accord.
        altered: path -> what a download of it gives instead of what was committed.
        slipped_in: path -> content that each commit has beside what it was asked for.
    """

    def __init__(self) -> None:
        self.token = "hf_loopbackSecret0123456789"
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # LFS contents by their SHA-256
        self.requests: list[str] = []
        self.altered: dict[str, bytes] = {}
        self.slipped_in: dict[str, bytes] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        handler = type("BoundHandler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def use(self, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
        """Point this process's Hub client here, with that token or none.

        Xet's storage is not spoken here: the client uploads by LFS.
        """
        from huggingface_hub import constants

        settings = {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint
            + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": "/nowhere/token",
            "AGENT_HARNESSES_PATH": "/nowhere/agents",
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)

    def fail(
        self,
        part: str,
        status: int,
        times: int = 1,
        headers: dict[str, str] | None = None,
        page: bytes | None = None,
    ) -> None:
        """Let the next requests whose "METHOD path" has `part` in it go wrong; see `Fault`."""
        self._faults += [Fault(part, status, headers or {}, page)] * times

    def heal(self) -> None:
        """Take back all that was to go wrong."""
        self._faults.clear()
        self.altered.clear()
        self.slipped_in.clear()

    def respond(self, method: str, path: str, token: str | None, body: bytes) -> Answer | None:
        """The answer to a request; None to drop the connection."""
        asked = f"{method} {path}"
        with self._lock:
            if path != "/api/agent-harnesses":
                self.requests.append(asked)
            fault = next((fault for fault in self._faults if fault.part in asked), None)
            if fault is not None:
                self._faults.remove(fault)
            if fault is None or fault.status == LOSE_ANSWER:
                answer = self._answer(method, path, token, body)
                return answer if fault is None else None
        if fault.status == STALL:
            self._closing.wait(30)
            return None
        return fault.answer

    def _answer(self, method: str, path: str, token: str | None, body: bytes) -> Answer:
        try:
            return self._route(method, path, token, body)
        except Refusal as refusal:
            return refusal.answer

    def _route(self, method: str, path: str, token: str | None, body: bytes) -> Answer:
        for verb, pattern, access, handler in ROUTES:
            match = re.fullmatch(pattern, path)
            if match is None or method not in (verb, "HEAD" if verb == "GET" else verb):
                continue
            request = Request(self, match.groupdict(), body)
            if access == "token" and token != self.token:
                raise Refusal(401, "Invalid username or password.")
            if access == "reader" and request.repo.private and token != self.token:
                raise Refusal(404, "Repository not found", "RepoNotFound")
            return handler(request)
        raise Refusal(404, f"nothing at {method} {path}")


def whoami(request: Request) -> Answer:
    return Answer({"type": "user", "name": "shop", "orgs": [], "auth": {"type": "access_token"}})


def create(request: Request) -> Answer:
    wish = request.json()
    repo_id = f"{wish.get('organization') or 'shop'}/{wish['name']}"
    url = {"url": f"{request.hub.endpoint}/{repo_id}"}
    if repo_id in request.hub.repos:
        return Answer(url | {"error": "You already created this model repo"}, 409)
    private = wish.get("visibility") == "private" or bool(wish.get("private"))
    request.hub.repos[repo_id] = Repo(private)
    return Answer(url)


def validate_yaml(request: Request) -> Answer:
    """Metadata between two lines of `---`: a mapping, with a `base_model` that is a Hub id."""
    matter = re.match(r"---\n(.*?)^---$", request.json()["content"], re.DOTALL | re.MULTILINE)
    try:
        values = yaml.safe_load(matter[1]) if matter else {}
        problem = "" if isinstance(values, dict) else "metadata is no mapping"
    except yaml.YAMLError as error:
        values, problem = {}, str(error)
    if not problem and not re.fullmatch(r"[\w.-]+/[\w.-]+", values.get("base_model", "a/b")):
        problem = '"base_model" must be a Hub id'
    errors = [{"message": problem}] if problem else []
    return Answer({"errors": errors, "warnings": []}, 400 if errors else 200)


def preupload(request: Request) -> Answer:
    tree = request.commit.tree
    files = []
    for asked in request.json()["files"]:
        path = asked["path"]
        lfs = path.endswith(".safetensors") or asked["size"] > REGULAR_LIMIT
        known = {"oid": tree[path].oid} if path in tree else {}
        mode = "lfs" if lfs else "regular"
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | known)
    return Answer({"files": files})


def lfs_batch(request: Request) -> Answer:
    objects = []
    for wish in request.json()["objects"]:
        known = {"oid": wish["oid"], "size": wish["size"]}
        upload = {
            "actions": {"upload": {"href": f"{request.hub.endpoint}/lfs/{wish['oid']}?{SIGNATURE}"}}
        }
        objects.append(known if wish["oid"] in request.hub.objects else known | upload)
    return Answer({"transfer": "basic", "objects": objects})


def lfs_put(request: Request) -> Answer:
    """As behind a signed address: no token, and only the content that was announced."""
    if hashlib.sha256(request.body).hexdigest() != request.names["oid"]:
        raise Refusal(400, "the content is not what its hash says")
    request.hub.objects[request.names["oid"]] = request.body
    return Answer({})


def commit(request: Request) -> Answer:
    tree = dict(request.commit.tree)
    message = ""
    for line in request.body.splitlines():
        key, value = json.loads(line).values()
        if key == "header":
            message = value["summary"]
        elif key == "file":
            tree[value["path"]] = StoredFile(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile" and value["oid"] in request.hub.objects:
            tree[value["path"]] = StoredFile(request.hub.objects[value["oid"]], lfs=True)
        elif key == "deletedFile" and value["path"] in tree:
            del tree[value["path"]]
        else:
            raise Refusal(400, f"cannot commit {key} {value.get('path')}")
    for path, content in request.hub.slipped_in.items():
        tree[path] = StoredFile(content, lfs=False)
    made = request.repo.commit(message, tree)
    url = f"{request.hub.endpoint}/{request.names['repo']}/commit/{made.oid}"
    return Answer({"success": True, "commitOid": made.oid, "commitUrl": url})


def info(request: Request) -> Answer:
    private = request.repo.private
    return Answer({"id": request.names["repo"], "sha": request.commit.oid, "private": private})


def tree(request: Request) -> Answer:
    """All files; folders, which the Hub lists too, are left out."""
    entries: list[dict[str, Any]] = []
    for path, file in request.commit.tree.items():
        size = len(file.content)
        lfs = {"lfs": {"oid": file.oid, "size": size, "pointerSize": 134}} if file.lfs else {}
        entries.append({"type": "file", "path": path, "size": size, "oid": file.oid} | lfs)
    return Answer(entries)


def resolve(request: Request) -> Answer:
    """A file's content; the Hub itself sends an LFS file from another address."""
    at = request.commit
    if request.names["path"] not in at.tree:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    file = at.tree[request.names["path"]]
    headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": at.oid}
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.content))}
    return Answer(request.hub.altered.get(request.names["path"], file.content), headers=headers)


def create_tag(request: Request) -> Answer:
    tag = request.json()["tag"]
    if tag in request.repo.tags:
        raise Refusal(409, f"Tag {tag} exists already")
    request.repo.tags[tag] = request.commit.oid
    return Answer({})


def refs(request: Request) -> Answer:
    def entries(kind: str, targets: dict[str, str]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}
            for name, oid in targets.items()
        ]

    branches = {"main": request.repo.commits[-1].oid}
    tags = entries("tags", request.repo.tags)
    return Answer({"branches": entries("heads", branches), "converts": [], "tags": tags})


REPO, REVISION = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
Access = Literal["token", "reader", "open"]  # reader: a token too, if the repo is private
ROUTES: list[tuple[str, str, Access, Callable[[Request], Answer]]] = [
    ("GET", "/api/whoami-v2", "token", whoami),
    ("POST", "/api/repos/create", "token", create),
    ("POST", "/api/validate-yaml", "open", validate_yaml),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", "token", preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "token", lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "open", lfs_put),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", "token", commit),
    ("GET", f"/api/models/{REPO}(?:/revision/{REVISION})?", "reader", info),
    ("GET", f"/api/models/{REPO}/tree/{REVISION}", "reader", tree),
    ("POST", f"/api/models/{REPO}/tag/{REVISION}", "token", create_tag),
    ("GET", f"/api/models/{REPO}/refs", "reader", refs),
    ("GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", "reader", resolve),
]


class _Handler(BaseHTTPRequestHandler):
    """HTTP on one side, `HubServer.respond` on the other."""

    hub: HubServer

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        path = unquote(self.path.partition("?")[0])
        answer = self.hub.respond(self.command, path, token, body)
        if answer is None:
            return  # the connection is closed on the way out
        is_bytes = isinstance(answer.body, bytes)
        content = answer.body if is_bytes else json.dumps(answer.body).encode()
        kind = "application/octet-stream" if is_bytes else "application/json"
        headers = {"Content-Type": kind, "Content-Length": str(len(content))} | answer.headers
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""
