"""A Hub that is busy, breaks off, does not answer, refuses, or gives back something else.

Each time the real client pushes to a real server; only the pauses between attempts are not made.
"""

import logging
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import numpy
import pytest
from huggingface_hub import get_session, set_client_factory
from safetensors.numpy import save_file

from tests.hub_server import DROP, LOSE_ANSWER, SIGNATURE, STALL, HubServer
from vlmtune.errors import UserError
from vlmtune.publishing import patience
from vlmtune.publishing.hub import PushedRepo, push_folder, tag_commit
from vlmtune.publishing.patience import Patience
from vlmtune.publishing.same_files import NotWhatWasTested
from vlmtune.revision import hash_files

pytestmark = pytest.mark.usefixtures("pauses")

Push = Callable[..., PushedRepo]
CREATE, INFO, COMMIT, TAG = "/repos/create", "GET /api/models/", "/commit/", "/tag/"
TREE, PREUPLOAD, LFS, PUT = "/tree/", "/preupload/", "/info/lfs/", "PUT "
YAML, REFS, HEAD, RESOLVE = "/validate-yaml", "/refs", "HEAD ", "GET /shop/words/resolve/"
OURS = (INFO, CREATE, REFS, YAML, COMMIT, RESOLVE, TAG)  # the client does not try these again
THE_CLIENTS = (TREE, PREUPLOAD, LFS, PUT, HEAD)


@pytest.fixture
def push(folder: Path) -> Push:
    """Push the folder to shop/words as v1."""

    def push(
        tag: str = "v1", patience: Patience | None = None, files: dict[str, str] | None = None
    ) -> PushedRepo:
        pushed = push_folder(folder, "shop/words", True, "vlmtune: adapter", tag, files, patience)
        return tag_commit(pushed, tag, patience)

    return push


def require_published(hub: HubServer, pushed: PushedRepo, folder: Path) -> None:
    """One commit with the folder's files, a private repo, a tag on the commit."""
    repo = hub.repos["shop/words"]
    assert repo.private
    assert repo.files == {name: (folder / name).read_bytes() for name in hash_files(folder)}
    assert len(repo.commits) == 2
    assert repo.tags == {"v1": pushed.commit} == {"v1": repo.commits[-1].oid}
    assert pushed.files == hash_files(folder)


def refusal(hub: HubServer, push: Push, **options: Any) -> UserError:
    """The error of a push that fails: one line that says what to do, and no tag on the Hub."""
    with pytest.raises(UserError) as caught:
        push(**options)
    assert caught.value.mend and "\n" not in str(caught.value)
    assert "shop/words" in caught.value.problem or "the Hub is busy" in caught.value.problem
    assert hub.token not in str(caught.value) and SIGNATURE not in str(caught.value)
    assert all(repo.tags == {} for repo in hub.repos.values())
    return caught.value


def count(hub: HubServer, part: str) -> int:
    return sum(part in asked for asked in hub.requests)


# --- Faults that pass ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503, DROP])
@pytest.mark.parametrize("part", OURS + THE_CLIENTS)
def test_passing_faults(
    hub: HubServer, push: Push, folder: Path, pauses: list[float], part: str, status: int
) -> None:
    """Whichever request fails twice, the push goes on and nothing is done twice."""
    hub.fail(part, status, times=2)
    require_published(hub, push(), folder)
    assert count(hub, PUT) == (3 if part == PUT else 1)
    if part in OURS and part != RESOLVE:
        first, second = pauses
        assert 1 <= first <= 2 <= second <= 3
    elif part in THE_CLIENTS and (part, status) != (HEAD, DROP):
        assert pauses == []


@pytest.mark.parametrize("part", [CREATE, COMMIT, TAG])
def test_what_was_done_is_not_done_again(
    hub: HubServer, push: Push, folder: Path, part: str
) -> None:
    """The connection breaks after the Hub has done it: that is found out, not done again."""
    hub.fail(part, LOSE_ANSWER)
    require_published(hub, push(), folder)
    assert count(hub, part) == 1


def test_uploads_are_not_sent_again(hub: HubServer, push: Push, folder: Path) -> None:
    """A commit that breaks off, in this push for good: the next one sends no weights."""
    hub.fail(COMMIT, DROP, times=3)
    assert "Run the same command again" in refusal(hub, push, patience=Patience(3)).mend
    assert hub.repos["shop/words"].files == {}
    require_published(hub, push(), folder)
    assert count(hub, PUT) == 1


def test_a_tag_that_failed_is_made_up_for(hub: HubServer, push: Push, folder: Path) -> None:
    """The files are there without a tag: the next push only sets the tag."""
    hub.fail(TAG, 503, times=7)
    refusal(hub, push)
    hub.requests.clear()
    require_published(hub, push(), folder)
    assert count(hub, COMMIT) == count(hub, PUT) == 0


def test_a_web_page_where_json_was_due(hub: HubServer, push: Push, folder: Path) -> None:
    """What a proxy before the Hub answers, where the client reads before it looks at the status."""
    hub.fail(YAML, 503, page=b"<html>Service unavailable</html>")
    require_published(hub, push(), folder)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("part", [CREATE, COMMIT, PREUPLOAD, TAG])
def test_patience_comes_to_an_end(
    hub: HubServer, push: Push, pauses: list[float], part: str, status: int
) -> None:
    """A fault that does not pass is tried a few times; the line says what the Hub answers."""
    hub.fail(part, status, times=50)
    error = refusal(hub, push)
    assert str(status) in error.problem and "Run the same command again later" in error.mend
    assert count(hub, part) == (6 if part == PREUPLOAD else 7)  # the client's, and ours
    assert sum(pauses) < 100


def test_pauses_grow(hub: HubServer, push: Push, pauses: list[float]) -> None:
    """1, 2, 4 ... 30 seconds, and a little more by chance so that two runs do not meet again."""
    hub.fail(CREATE, 503, times=50)
    refusal(hub, push)
    assert len(pauses) == 6
    for pause, least in zip(pauses, [1, 2, 4, 8, 16, 30], strict=True):
        assert least <= pause <= min(least + 1, 30)


@pytest.mark.parametrize("part", [COMMIT, PREUPLOAD])
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(
    hub: HubServer, push: Push, folder: Path, pauses: list[float], part: str, status: int
) -> None:
    """The Hub is left alone for as long as it asks; the client does so for its own requests."""
    hub.fail(part, status, headers={"Retry-After": "25"})
    require_published(hub, push(), folder)
    assert pauses == ([25.0] if part == COMMIT else [])


def test_retry_after_as_a_date(hub: HubServer, push: Push, pauses: list[float]) -> None:
    """Some proxies name the time."""
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    hub.fail(CREATE, 503, headers={"Retry-After": at})
    push()
    assert 30 < pauses[0] <= 40


def test_rate_limit_header(hub: HubServer, push: Push, pauses: list[float]) -> None:
    """The Hub's own way to say when it can be asked again."""
    hub.fail(CREATE, 429, headers={"RateLimit": '"api";r=0;t=55'})
    push()
    assert pauses == [56.0]


@pytest.mark.parametrize("part", [COMMIT, PREUPLOAD, PUT])
def test_nobody_waits_for_an_hour(
    hub: HubServer, push: Push, pauses: list[float], part: str
) -> None:
    """A Hub that asks for a long wait is not waited for, by the client either."""
    hub.fail(part, 429, headers={"Retry-After": "3600"}, times=50)
    assert "asks to wait for 3600 s" in refusal(hub, push).problem
    assert pauses == [] and count(hub, part) == 1


def test_the_waits_of_a_push_are_bounded_together(
    hub: HubServer, push: Push, pauses: list[float]
) -> None:
    """Each thing alone would be waited for, but not all of them."""
    for part in (CREATE, COMMIT, RESOLVE):
        hub.fail(part, 429, headers={"Retry-After": "70"})
    assert "asks to wait for 70 s" in refusal(hub, push).problem
    assert pauses == [70.0, 70.0]


def test_hub_out_of_reach(
    hub: HubServer, push: Push, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers: tried again, then told."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    error = refusal(hub, push, patience=Patience(attempts=3))
    assert "ConnectError" in error.problem and "Run the same command again" in error.mend
    assert len(pauses) == 2


# --- A Hub that says nothing -----------------------------------------------------------------


@pytest.mark.parametrize("part", [INFO, CREATE, COMMIT, PREUPLOAD, PUT, TAG])
def test_a_stall_ends(hub: HubServer, push: Push, folder: Path, part: str) -> None:
    """A request that is never answered is given up and sent again."""
    hub.fail(part, STALL)
    start = time.monotonic()
    require_published(hub, push(patience=Patience(answer_seconds=0.3)), folder)
    assert time.monotonic() - start < 10  # the server would stay silent for 30 s


def test_stalls_use_patience_up(
    hub: HubServer, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that was waited in vain counts: twice 0.3 + 1 s are more than 2.5 s."""
    monkeypatch.setattr(patience, "_seconds_to_wait", lambda state: 1.0)
    hub.fail(COMMIT, STALL, times=50)
    error = refusal(hub, push, patience=Patience(seconds=2.5, answer_seconds=0.3))
    assert "the Hub does not answer" in error.problem
    assert count(hub, COMMIT) == 2


def test_the_client_is_left_as_it_was(hub: HubServer, push: Push, folder: Path) -> None:
    """A client of the user's own, with its proxies, is used with limits, and whole afterwards."""
    from huggingface_hub.utils import _http

    made: list[httpx2.Client] = []

    def make() -> httpx2.Client:
        made.append(_http.default_client_factory())
        return made[-1]

    before = _http._GLOBAL_CLIENT_FACTORY
    try:
        set_client_factory(make)
        push()
        assert len(made) == 2 and all(client.is_closed for client in made)  # push, and tag
        assert get_session() is made[2]
        assert len(made[2].event_hooks["request"]) == 1 and not made[2].event_hooks["response"]
        hub.fail(COMMIT, 403)
        (folder / "README.md").write_text("# Another\n")
        with pytest.raises(UserError, match="403"):
            push(tag="v2")
        assert get_session() is made[-1] and not made[-1].event_hooks["response"]
    finally:
        set_client_factory(before)


# --- Faults that do not pass -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "mend"),
    [(401, "HF_TOKEN"), (403, "write access to shop/words"), (404, "hub.repo_id")]
    + [(status, "Something else changes this repo") for status in (409, 412)],
)
@pytest.mark.parametrize("part", [CREATE, COMMIT, PREUPLOAD, TAG])
def test_refused(
    hub: HubServer, push: Push, pauses: list[float], part: str, status: int, mend: str
) -> None:
    """Asked once, and told what the Hub says and what to mend."""
    hub.fail(part, status, times=50)
    error = refusal(hub, push)
    assert "the Hub refuses the push to shop/words" in error.problem
    assert str(status) in error.problem and mend in error.mend
    assert count(hub, part) == 1 and pauses == []


def test_a_repo_that_may_not_be_seen_is_not_made(hub: HubServer, push: Push) -> None:
    """Only a repo that is not there is made."""
    hub.fail(INFO, 403)
    assert "write access to shop/words" in refusal(hub, push).mend
    assert count(hub, CREATE) == 0


def test_two_pushes_at_once_mark_one_version(hub: HubServer, push: Push) -> None:
    """Another run has set the tag in between, on a commit of its own."""
    push()
    repo = hub.repos["shop/words"]
    repo.tags = {"v1": repo.commits[0].oid}
    with pytest.raises(UserError, match="has a tag v1 already, on the other commit"):
        push()
    assert repo.tags == {"v1": repo.commits[0].oid}


# --- What comes back -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "sub/vocab.json"])
def test_other_bytes_come_back(hub: HubServer, push: Push, folder: Path, name: str) -> None:
    """As many bytes, one of them another: not what was tested, and the file is named."""
    content = (folder / name).read_bytes()
    hub.altered[name] = content[:-1] + bytes([content[-1] ^ 1])
    error = refusal(hub, push)
    assert isinstance(error, NotWhatWasTested)
    assert error.files == {name: "changed"} and f"{name} (changed)" in error.problem
    assert hub.repos["shop/words"].commits[-1].oid in error.problem
    hub.heal()
    require_published(hub, push(), folder)


def test_more_comes_back(hub: HubServer, push: Push) -> None:
    """A file of somebody who pushes at the same time."""
    hub.slipped_in["modeling.py"] = b"import os"
    error = refusal(hub, push)
    assert isinstance(error, NotWhatWasTested) and error.files == {"modeling.py": "added"}


def test_less_comes_back(hub: HubServer, push: Push, folder: Path) -> None:
    """The folder has lost a file since it was tested."""
    tested = hash_files(folder)
    (folder / "sub/vocab.json").unlink()
    error = refusal(hub, push, files=tested)
    assert isinstance(error, NotWhatWasTested) and error.files == {"sub/vocab.json": "missing"}


def test_the_folder_changes_while_it_is_pushed(hub: HubServer, push: Push, folder: Path) -> None:
    """What arrives is held against the test, not against the folder as it is by then."""
    tested = hash_files(folder)
    (folder / "README.md").write_text("# Another model\n")
    error = refusal(hub, push, files=tested)
    assert isinstance(error, NotWhatWasTested) and error.files == {"README.md": "changed"}


@contextmanager
def small_files_only(size: int) -> Iterator[None]:
    """Let the system refuse to make files longer than that, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_to_download_it_back(hub: HubServer, push: Push, folder: Path) -> None:
    """The disk takes no more: nobody knows whether it arrived, so it gets no tag."""
    save_file({"lora_A": numpy.ones(600_000)}, folder / "adapter_model.safetensors")
    with small_files_only(4_000_000):
        error = refusal(hub, push)
    assert "has no room to download shop/words back" in error.problem and "TMPDIR" in error.mend
    require_published(hub, push(), folder)


# --- Secrets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [503, DROP, 403])
def test_no_secret_in_the_log(
    hub: HubServer, push: Push, caplog: pytest.LogCaptureFixture, fault: int
) -> None:
    """Neither token nor signed address, at any level; a retry is one line."""
    hub.fail(PUT, fault, times=50)
    hub.fail(CREATE, 503)
    with caplog.at_level(logging.DEBUG):
        refusal(hub, push)
    assert "/lfs/" in caplog.text and hub.token not in caplog.text
    assert SIGNATURE not in caplog.text
    assert not [record for record in caplog.records if SIGNATURE in str(record.__dict__)]
    [retry] = [r.getMessage() for r in caplog.records if r.name == "vlmtune.publishing.patience"]
    assert retry.startswith("Finding shop/words: the Hub answers 503 Service Unavailable; trying ")
    assert "\n" not in retry
