"""What is published where, with the real Hub client and a Hub on this machine."""

import json
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from tests.hub_server import HubServer
from vlmtune.config.publishing import HubConfig
from vlmtune.models.adapter import Adapter, AdapterRecord
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.merging import MergeRecord, MergeResult
from vlmtune.publishing.publication import Kind, publish

BASE = BaseModelRef(id="owner/model", commit="0" * 40)
CARDS: dict[Kind, str] = {"adapter": "# The adapter\n", "merged": "# The merged model\n"}
BOTH = HubConfig(repo_id="shop/words", push=["adapter", "merged"])


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """A minimal but real adapter folder."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    weights = {"base_model.model.q_proj.lora_A.weight": numpy.ones((2, 4), dtype="float32")}
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    return Adapter(folder=folder, record=AdapterRecord(base=BASE, train_rows=3))


@pytest.fixture
def merged(tmp_path: Path, adapter: Adapter) -> MergeResult:
    """A minimal but real folder of a merged model."""
    folder = tmp_path / "merged"
    folder.mkdir()
    save_file({"q_proj.weight": numpy.ones((4, 4))}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    record = MergeRecord(status="merged", base=BASE, adapter_hash=adapter.content_hash)
    return MergeResult(record=record, folder=folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_both_kinds_in_their_repos(hub: HubServer, adapter: Adapter, merged: MergeResult) -> None:
    """The adapter in repo_id and the merged model in repo_id-merged, each with its card."""
    done = publish(BOTH, adapter, merged, CARDS)
    assert done.status == "pushed" and done.cards == CARDS
    assert merged.folder is not None
    folders: dict[Kind, Path] = {"adapter": adapter.folder, "merged": merged.folder}
    names: dict[Kind, str] = {"adapter": "shop/words", "merged": "shop/words-merged"}
    assert set(hub.repos) == set(names.values())
    for kind, folder in folders.items():
        repo = hub.repos[names[kind]]
        assert repo.private
        assert repo.files == files_of(folder) | {"README.md": CARDS[kind].encode()}
        assert [commit.message for commit in repo.commits[1:]] == [f"vlmtune: {kind}"]
        assert done.repos[kind].repo_id == names[kind]
        assert done.repos[kind].commit == repo.commits[-1].oid


def test_config_decides(hub: HubServer, adapter: Adapter, merged: MergeResult) -> None:
    """Only what hub.push lists, and public if hub.private is false."""
    publish(HubConfig(repo_id="shop/words", private=False), adapter, merged, CARDS)
    assert {name: repo.private for name, repo in hub.repos.items()} == {"shop/words": False}


def test_skipped_merge(hub: HubServer, adapter: Adapter, merged: MergeResult) -> None:
    """Without a merged model only the adapter is pushed."""
    skipped = MergeResult(record=merged.record.model_copy(update={"status": "skipped"}))
    done = publish(BOTH, adapter, skipped, CARDS)
    assert list(done.repos) == ["adapter"]
    assert list(hub.repos) == ["shop/words"]


def test_ready_without_a_repo(hub: HubServer, adapter: Adapter, merged: MergeResult) -> None:
    """Without hub.repo_id the Hub is not even asked; the cards are there."""
    done = publish(HubConfig(push=["adapter", "merged"]), adapter, merged, CARDS)
    assert (done.status, done.repos, done.cards) == ("ready", {}, CARDS)
    assert hub.requests == []


def test_pickle_stops_it_before_anything_is_sent(
    hub: HubServer, adapter: Adapter, merged: MergeResult
) -> None:
    """A pickle in the last folder keeps the first from going out too."""
    assert merged.folder is not None
    (merged.folder / "training_args.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"training_args\.bin may be a pickle"):
        publish(BOTH, adapter, merged, CARDS)
    assert hub.requests == [] and hub.repos == {}


def test_the_folders_stay_as_they_are(
    hub: HubServer, adapter: Adapter, merged: MergeResult
) -> None:
    """Publishing writes nothing into the artifacts, and the same again makes no commit."""
    before = files_of(adapter.folder)
    first = publish(BOTH, adapter, merged, CARDS)
    assert files_of(adapter.folder) == before
    assert publish(BOTH, adapter, merged, CARDS) == first
    assert all(len(repo.commits) == 2 for repo in hub.repos.values())
