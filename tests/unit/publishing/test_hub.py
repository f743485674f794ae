"""Pushing with the real Hub client to a Hub on this machine."""

import logging
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.unit.publishing.conftest import CARD
from vlmtune.errors import UserError
from vlmtune.publishing.hub import PushedRepo, push_folder, tag_commit
from vlmtune.revision import hash_files

Push = Callable[..., PushedRepo]


@pytest.fixture
def push(folder: Path) -> Push:
    """Push the folder to shop/words, and tag it if asked to."""

    def push(
        private: bool = True, repo_id: str = "shop/words", tag: str | None = None
    ) -> PushedRepo:
        pushed = push_folder(folder, repo_id, private, "vlmtune: adapter", tag)
        return tag_commit(pushed, tag) if tag else pushed

    return push


def contents(folder: Path) -> dict[str, bytes]:
    """Relative name -> bytes of all files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def download(repo_id: str, target: Path) -> dict[str, bytes]:
    """What anybody gets who downloads the repo; without the Hub's own file and the cache."""
    from huggingface_hub import snapshot_download

    snapshot_download(repo_id, local_dir=target)
    files = contents(target).items()
    return {name: content for name, content in files if not name.startswith((".cache", ".git"))}


def refusal(push: Push, **changes: str) -> UserError:
    """The error of a push that fails: what to mend, one line, no token wherever it is shown."""
    with pytest.raises(UserError) as caught:
        push(**changes)
    assert caught.value.mend
    assert "\n" not in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert os.environ.get("HF_TOKEN", "hf_") not in shown
    return caught.value


def test_one_private_commit_of_the_whole_folder(
    hub: HubServer, push: Push, folder: Path, tmp_path: Path
) -> None:
    """All files and no other, in one commit; weights go by LFS; a download gives every byte."""
    pushed = push()
    repo = hub.repos["shop/words"]
    assert repo.private
    assert [commit.message for commit in repo.commits] == ["initial commit", "vlmtune: adapter"]
    assert repo.files == contents(folder)
    assert [name for name, file in repo.commits[-1].tree.items() if file.lfs] == [
        "adapter_model.safetensors"
    ]
    assert pushed == PushedRepo(
        repo_id="shop/words",
        url=f"{hub.endpoint}/shop/words/commit/{repo.commits[-1].oid}",
        commit=repo.commits[-1].oid,
        files=hash_files(folder),
    )
    assert download("shop/words", tmp_path / "fresh") == contents(folder)


def test_public_if_asked_for(hub: HubServer, push: Push) -> None:
    """hub.private: false."""
    push(private=False)
    assert not hub.repos["shop/words"].private


def test_a_private_push_never_goes_to_a_public_repo(hub: HubServer, push: Push) -> None:
    """An older public repo would stay public: nothing is sent, and the line says how to mend it."""
    push(private=False)
    commits = len(hub.repos["shop/words"].commits)
    with pytest.raises(UserError, match=r"hub\.private is true, but shop/words is public"):
        push(private=True)
    assert len(hub.repos["shop/words"].commits) == commits


def test_a_removed_file_is_removed_on_the_hub(
    hub: HubServer, push: Push, folder: Path, tmp_path: Path
) -> None:
    """What is on the Hub is the folder as it is now, still in one commit a push."""
    push()
    (folder / "sub/vocab.json").unlink()
    (folder / "README.md").write_text(CARD + "Better.\n")
    push()
    repo = hub.repos["shop/words"]
    assert len(repo.commits) == 3
    assert set(repo.files) == {"adapter_model.safetensors", "README.md"}
    assert download("shop/words", tmp_path / "fresh") == contents(folder)


def test_the_same_again_changes_nothing(hub: HubServer, push: Push) -> None:
    """A push that was not needed only looks, and names the last commit."""
    first = push()
    hub.requests.clear()
    assert push() == first
    assert len(hub.repos["shop/words"].commits) == 2
    assert not [asked for asked in hub.requests if asked.startswith(("PUT", "POST"))]


def test_other_weights_under_the_same_names(hub: HubServer, push: Push, folder: Path) -> None:
    """Only what is on LFS has changed, and by one byte: it goes out."""
    push()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    push()
    assert len(hub.repos["shop/words"].commits) == 3
    assert hub.repos["shop/words"].files == contents(folder)


def test_a_tag_stands_on_the_version(hub: HubServer, push: Push, tmp_path: Path) -> None:
    """A tag on the commit, which is kept where it is by the same push again."""
    first = push(tag="v3")
    repo = hub.repos["shop/words"]
    assert first.tag == "v3"
    assert repo.tags == {"v3": first.commit} == {"v3": repo.commits[-1].oid}
    assert push(tag="v3") == first
    assert push(tag="v4").commit == first.commit
    assert repo.tags == {"v3": first.commit, "v4": first.commit}
    assert len(repo.commits) == 2


def test_a_tag_of_another_commit_stays(hub: HubServer, push: Push, folder: Path) -> None:
    """Other files under an old name: the tag and its commit are named, and nothing is sent."""
    first = push(tag="v3")
    (folder / "README.md").write_text(CARD + "Better.\n")
    hub.requests.clear()
    error = refusal(push, tag="v3")
    assert f"shop/words has a tag v3 already, on the other commit {first.commit}" in error.problem
    assert not [asked for asked in hub.requests if asked.startswith("POST")]
    assert push().commit != first.commit
    (folder / "README.md").write_text(CARD)
    assert "other commit" in refusal(push, tag="v3").problem  # the same files, but a new commit
    assert hub.repos["shop/words"].tags == {"v3": first.commit}


def test_without_a_token(hub: HubServer, push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made, and the user is told which variable to set."""
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN" in refusal(push).mend
    assert hub.repos == {}


@pytest.mark.parametrize("token", ["hf_wrongSecret", "hf_wröngSecret"])
def test_bad_token(hub: HubServer, push: Push, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """One the Hub does not know, and one with a letter no token has: pointed at, never shown."""
    monkeypatch.setenv("HF_TOKEN", token)
    error = refusal(push)
    assert "HF_TOKEN" in error.mend
    assert "Secret" not in str(error) and "hf_" not in str(error)
    assert hub.repos == {}


def test_card_that_the_hub_does_not_take(hub: HubServer, push: Push, folder: Path) -> None:
    """The Hub's reason is shown, and which key of the config stands in the card."""
    (folder / "README.md").write_text("---\nbase_model: /data/base\n---\n")
    error = refusal(push)
    assert '"base_model" must be a Hub id' in error.problem
    assert "hub.license" in error.mend
    assert hub.repos["shop/words"].files == {}


def test_name_that_is_none(hub: HubServer, push: Push) -> None:
    """A repo_id that the client does not even ask for names its key."""
    error = refusal(push, repo_id="shop/words/for/mugs")
    assert "shop/words/for/mugs" in error.problem
    assert "hub.repo_id" in error.mend
    assert hub.requests == []


def test_no_token_in_the_log(hub: HubServer, push: Push, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a push nor a failed one logs the token, whatever the level."""
    with caplog.at_level(logging.DEBUG):
        push()
        hub.fail("/repos/create", 403)
        hub.fail("GET /api/models/", 403)
        refusal(push)
    assert "Pushed " in caplog.text
    assert hub.token not in caplog.text
    assert not [record for record in caplog.records if hub.token in str(record.__dict__)]
