"""Names are pinned to what they stand for; a Hub that refuses says what to mend."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vlmtune import revision
from vlmtune.errors import UserError
from vlmtune.revision import (
    digest_of,
    folder_size,
    hash_file,
    hash_files,
    hash_folder,
    hash_text,
    is_local,
    public_name,
    resolve_commit,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Answer = tuple[int, dict[str, str], dict[str, object]]
ANSWERS: dict[str, Answer] = {
    "/api/models/shop/open": (200, {}, {"id": "shop/open", "sha": COMMIT, "gated": False}),
    "/api/models/shop/open/revision/v1": (200, {}, {"id": "shop/open", "sha": COMMIT[::-1]}),
    "/api/models/shop/open/revision/v2": (404, {"X-Error-Code": "RevisionNotFound"}, {}),
    "/api/datasets/shop/mugs": (200, {}, {"id": "shop/mugs", "sha": COMMIT, "gated": False}),
    "/api/models/shop/closed": (403, {"X-Error-Code": "GatedRepo"}, {}),
    "/api/models/shop/gated": (200, {}, {"id": "shop/gated", "sha": COMMIT, "gated": "manual"}),
    "/api/models/shop/gated/auth-check": (403, {"X-Error-Code": "GatedRepo"}, {}),
    "/api/models/shop/mine": (200, {}, {"id": "shop/mine", "sha": COMMIT, "gated": "auto"}),
    "/api/models/shop/mine/auth-check": (200, {}, {}),
    "/api/models/shop/down": (500, {}, {}),
}


class Hub(BaseHTTPRequestHandler):
    """A Hub with the few repos of `ANSWERS`."""

    asked: list[str]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path != "/api/agent-harnesses":  # the Hub client asks that of its own accord
            self.asked.append(path)
        missing: Answer = (404, {"X-Error-Code": "RepoNotFound"}, {})
        status, headers, body = ANSWERS.get(path, missing)
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A Hub on this machine, which the Hub client asks without a token; what it was asked."""
    paths: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Local", (Hub,), {"asked": paths}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield paths
    server.shutdown()
    thread.join()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", "/nowhere/agents.json", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def refusal(repo_id: str, revision: str | None = None, repo_type: str = "model") -> str:
    """The message of a repo that cannot be pinned: it is for the user, and one line."""
    with pytest.raises(UserError) as caught:
        resolve_commit(repo_id, revision, repo_type)
    assert caught.value.mend
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pins_names_to_commits(asked: list[str]) -> None:
    """The default branch, a tag and a data set."""
    assert resolve_commit("shop/open", None, "model") == COMMIT
    assert resolve_commit("shop/open", "v1", "model") == COMMIT[::-1]
    assert resolve_commit("shop/mugs", None, "dataset") == COMMIT
    assert len(asked) == 3


def test_full_commit_is_not_asked_for(asked: list[str]) -> None:
    """A pinned config works without a network; a short commit does have to be asked for."""
    assert resolve_commit("shop/gone", COMMIT, "model") == COMMIT
    assert asked == []
    refusal("shop/gone", COMMIT[:7])
    assert asked != []


def test_missing_repo(asked: list[str]) -> None:
    """A repo that is not there names the key it stands in."""
    for repo_type, key in (("model", "model.id"), ("dataset", "data.source")):
        problem = refusal("shop/gone", None, repo_type)
        assert problem.startswith(f"{key}: neither a folder here nor a repo on the Hub: shop/gone.")
        assert "Check the name" in problem


def test_gated_without_token(asked: list[str]) -> None:
    """A gated repo names the key and what to do, also where only its files are gated."""
    for repo_id in ("shop/closed", "shop/gated"):
        problem = refusal(repo_id)
        assert problem.startswith(f"model.id: {repo_id} is gated and your account has no access")
        assert "Accept its terms" in problem
        assert "HF_TOKEN" in problem


def test_gated_with_access(asked: list[str]) -> None:
    """A gated repo whose terms were accepted is like any other."""
    assert resolve_commit("shop/mine", None, "model") == COMMIT
    assert asked[-1] == "/api/models/shop/mine/auth-check"


def test_missing_revision(asked: list[str]) -> None:
    """A revision that is not there points at the revision."""
    problem = refusal("shop/open", "v2")
    assert problem.startswith("model.id: the Hub refuses shop/open: ")
    assert "Check the revision" in problem


def test_hub_that_fails(asked: list[str]) -> None:
    """A server error names key and repo."""
    assert refusal("shop/down").startswith("model.id: the Hub refuses shop/down: ")


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the key is named, and how to do without one."""
    with socket.socket() as free:  # a port at which nobody listens
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    use_hub(monkeypatch, f"http://127.0.0.1:{port}")
    problem = refusal("shop/mugs", None, "dataset")
    assert problem.startswith("data.source: shop/mugs is no folder here, and the Hub cannot be")
    assert "pin a full commit" in problem


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("shop/mugs", False),
        ("./mugs", True),
        ("../mugs", True),
        ("mugs", True),
        ("/data/mugs", True),
        ("~/mugs", True),
        ("data/shop/mugs", True),
        ("shop/", True),
    ],
)
def test_folder_or_hub(source: str, local: bool) -> None:
    """Only owner/name that is no folder here is looked for on the Hub."""
    assert is_local(source) is local


def test_existing_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder here is not looked for on the Hub, even if it is named like a repo."""
    monkeypatch.chdir(tmp_path)
    assert not is_local("shop/mugs")
    (tmp_path / "shop/mugs").mkdir(parents=True)
    assert is_local("shop/mugs")


def test_folder_hash(tmp_path: Path) -> None:
    """Names and contents count; where the folder lies and when it was written do not."""
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "one").write_text("1")
        (tmp_path / name / "sub/two").write_text("22")
    first, second = tmp_path / "a", tmp_path / "b"
    digest = hash_folder(first)
    assert hash_folder(second) == digest
    (second / "one").rename(second / "onf")  # sorted at the same place
    assert hash_folder(second) != digest
    (first / "one").write_text("x")
    assert hash_folder(first) != digest
    assert folder_size(first) == 3


def test_hashes_of_files(tmp_path: Path) -> None:
    """Each file by its content; the digest over them is the folder's, in whatever order."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/two").write_text("22")
    (tmp_path / "sub-one").write_text("1")
    files = hash_files(tmp_path)
    assert files == {"sub-one": hash_text("1"), "sub/two": hash_text("22")}
    assert digest_of(files) == digest_of(dict(reversed(files.items()))) == hash_folder(tmp_path)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A large file that was written a while ago."""
    path = tmp_path / "large"
    path.write_bytes(bytes(revision.LARGE))
    age(path)
    return path


def age(path: Path) -> None:
    """Say that a file was last changed an hour ago."""
    an_hour_ago = path.stat().st_mtime_ns - 3600 * 10**9
    os.utime(path, ns=(an_hour_ago, an_hour_ago))


def test_an_unchanged_large_file_is_read_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever name; one that was changed or replaced since is read again."""
    first = hash_file(large)
    other = large.with_name("other")
    os.link(large, other)
    with monkeypatch.context() as unreadable:
        unreadable.setattr(Path, "open", None)
        assert hash_file(large) == hash_file(other) == first
    large.write_bytes(bytes(revision.LARGE - 1) + b"x")
    changed = hash_file(large)
    assert changed == hash_file(other) != first
    large.unlink()
    large.write_bytes(bytes(revision.LARGE))
    age(large)
    assert hash_file(large) == first


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    """Changed again within a tick of the file system's clock, it would look as it did."""
    path = tmp_path / "large"
    path.write_bytes(bytes(revision.LARGE))
    written = path.stat().st_mtime_ns
    first = hash_file(path)
    path.write_bytes(bytes(revision.LARGE - 1) + b"x")
    os.utime(path, ns=(written, written))
    assert hash_file(path) != first


def test_a_name_without_the_folders_of_this_machine() -> None:
    """Hub ids and relative paths say nothing of a machine."""
    names = ("owner/model", "demo/model", "/home/ann/models/tiny", "~/shop", "words")
    assert [public_name(name) for name in names] == [
        *("owner/model", "demo/model", "tiny", "shop", "words")
    ]
