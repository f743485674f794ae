"""What is published where, with the real Hub client and a Hub on this machine."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from tests.hub_server import STALL, HubServer
from vlmtune.catalog.catalog import Catalog
from vlmtune.config.publishing import HubConfig
from vlmtune.errors import UserError
from vlmtune.evaluation.gate import PromotionDecision
from vlmtune.evaluation.intervals import Interval
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.models.adapter import Adapter, AdapterRecord
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.merging import MergeRecord, MergeResult
from vlmtune.publishing.bundle import assemble_bundle
from vlmtune.publishing.patience import Patience
from vlmtune.publishing.publication import (
    Kind,
    Publication,
    gather_facts,
    publish,
    write_cards,
    write_receipts,
)
from vlmtune.publishing.same_files import NotWhatWasTested
from vlmtune.revision import digest_of, hash_files
from vlmtune.tracking.provenance import Provenance

BASE = BaseModelRef(id="owner/model", commit="0" * 40)
CARDS: dict[Kind, str] = {"adapter": "# The adapter\n", "merged": "# The merged model\n"}
RECEIPTS: dict[Kind, str] = {"adapter": '{"files": 2}\n', "merged": '{"files": 3}\n'}
Tested = dict[Kind, dict[str, str]]
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


@pytest.fixture
def tested(adapter: Adapter, merged: MergeResult) -> Tested:
    """What the folders were when they were tested."""
    assert merged.folder is not None
    return {"adapter": hash_files(adapter.folder), "merged": hash_files(merged.folder)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_both_kinds_in_their_repos(
    hub: HubServer, adapter: Adapter, merged: MergeResult, tested: Tested
) -> None:
    """The adapter in repo_id and the merged model in repo_id-merged, each with its card."""
    done = publish(BOTH, adapter, merged, CARDS, tested)
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


def test_config_decides(
    hub: HubServer, adapter: Adapter, merged: MergeResult, tested: Tested
) -> None:
    """Only what hub.push lists, and public if hub.private is false."""
    publish(HubConfig(repo_id="shop/words", private=False), adapter, merged, CARDS, tested)
    assert {name: repo.private for name, repo in hub.repos.items()} == {"shop/words": False}


def test_skipped_merge(
    hub: HubServer, adapter: Adapter, merged: MergeResult, tested: Tested
) -> None:
    """Without a merged model only the adapter is pushed."""
    skipped = MergeResult(record=merged.record.model_copy(update={"status": "skipped"}))
    done = publish(BOTH, adapter, skipped, CARDS, tested)
    assert list(done.repos) == ["adapter"]
    assert list(hub.repos) == ["shop/words"]


def test_ready_without_a_repo(
    hub: HubServer, adapter: Adapter, merged: MergeResult, tested: Tested
) -> None:
    """Without hub.repo_id the Hub is not even asked; the cards are there."""
    done = publish(HubConfig(push=["adapter", "merged"]), adapter, merged, CARDS, tested)
    assert (done.status, done.repos, done.cards) == ("ready", {}, CARDS)
    assert hub.requests == []


def test_pickle_stops_it_before_anything_is_sent(
    hub: HubServer, adapter: Adapter, merged: MergeResult, tested: Tested
) -> None:
    """A pickle in the last folder keeps the first from going out too."""
    assert merged.folder is not None
    (merged.folder / "training_args.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"training_args\.bin may be a pickle"):
        publish(BOTH, adapter, merged, CARDS, tested)
    assert hub.requests == [] and hub.repos == {}


def test_the_folders_stay_as_they_are(
    hub: HubServer, adapter: Adapter, merged: MergeResult, tested: Tested
) -> None:
    """Publishing writes nothing into the artifacts, and the same again makes no commit."""
    before = files_of(adapter.folder)
    first = publish(BOTH, adapter, merged, CARDS, tested)
    assert files_of(adapter.folder) == before
    assert publish(BOTH, adapter, merged, CARDS, tested) == first
    assert all(len(repo.commits) == 2 for repo in hub.repos.values())


def test_card_and_receipt_go_out_and_carry_the_tag(
    hub: HubServer, adapter: Adapter, merged: MergeResult, tested: Tested
) -> None:
    """Both are no part of what was tested; all that arrived is in the record, with its hash."""
    done = publish(BOTH, adapter, merged, CARDS, tested, RECEIPTS, tag="v3")
    assert done.receipts == RECEIPTS
    for kind, repo_id in (("adapter", "shop/words"), ("merged", "shop/words-merged")):
        repo, pushed = hub.repos[repo_id], done.repos[kind]
        assert repo.files["receipt.json"] == RECEIPTS[kind].encode()
        assert repo.tags == {"v3": pushed.commit} and pushed.tag == "v3"
        assert tested[kind].items() < pushed.files.items()
        assert pushed.files.keys() - tested[kind].keys() == {"README.md", "receipt.json"}


@pytest.mark.parametrize("change", ["changed", "missing", "added"])
def test_a_tampered_merge_stops_it_before_anything_is_sent(
    hub: HubServer, adapter: Adapter, merged: MergeResult, tested: Tested, change: str
) -> None:
    """One bit of the last folder keeps the first from going out too, and the file is named."""
    assert merged.folder is not None
    name = "extra.json" if change == "added" else "model.safetensors"
    path = merged.folder / name
    content = bytearray(path.read_bytes()) if path.exists() else bytearray(b"{}")
    content[-1] ^= 1
    path.unlink() if change == "missing" else path.write_bytes(content)
    with pytest.raises(NotWhatWasTested, match=rf"{name} \({change}\)") as caught:
        publish(BOTH, adapter, merged, CARDS, tested)
    assert caught.value.files == {name: change}
    assert hub.requests == [] and hub.repos == {}


def test_what_was_not_tested_is_not_ready_either(
    adapter: Adapter, merged: MergeResult, tested: Tested
) -> None:
    """Without a repo nothing is sent, and still nothing else may be said to be ready."""
    path = adapter.folder / "adapter_config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(NotWhatWasTested, match=r"adapter_config\.json \(changed\)"):
        publish(HubConfig(), adapter, merged, CARDS, tested)


def test_no_room_to_lay_it_out(
    hub: HubServer,
    adapter: Adapter,
    merged: MergeResult,
    tested: Tested,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where files must be copied and the disk takes no more, nothing is sent."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("shutil.copy2", refuse)
    with pytest.raises(UserError, match="has no room to lay out what is published") as caught:
        publish(BOTH, adapter, merged, CARDS, tested)
    assert "TMPDIR" in caught.value.mend and hub.requests == []


def test_what_was_never_tested_is_not_sent(
    hub: HubServer, adapter: Adapter, merged: MergeResult, tested: Tested
) -> None:
    """A kind without a test has nothing to be held against."""
    with pytest.raises(NotWhatWasTested, match="the merged that is to be published"):
        publish(BOTH, adapter, merged, CARDS, {"adapter": tested["adapter"]})
    assert hub.requests == []


def spoil_commit(hub: HubServer) -> None:
    hub.fail("shop/words-merged/commit/", 403)


def spoil_tag(hub: HubServer) -> None:
    hub.fail("shop/words-merged/tag/", 503, times=50)


def spoil_download(hub: HubServer) -> None:
    hub.altered["model.safetensors"] = b"other weights"


def spoil_answers(hub: HubServer) -> None:
    hub.fail("shop/words-merged/commit/", STALL, times=50)


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("spoil", [spoil_commit, spoil_tag, spoil_download, spoil_answers])
def test_a_failed_push_is_no_publication(
    hub: HubServer,
    adapter: Adapter,
    merged: MergeResult,
    tested: Tested,
    spoil: Callable[[HubServer], None],
) -> None:
    """What arrived before is told; what failed has no tag, and its reason is told in one line."""
    spoil(hub)
    patience = Patience(attempts=2, answer_seconds=0.3)
    done = publish(BOTH, adapter, merged, CARDS, tested, RECEIPTS, "v1", patience)
    assert done.status == "unpublished"
    assert done.reason.startswith("merged: ") and "shop/words-merged" in done.reason
    assert "\n" not in done.reason and hub.token not in done.model_dump_json()
    assert list(done.repos) == (["adapter", "merged"] if spoil == spoil_tag else ["adapter"])
    tags = {"v1": done.repos["adapter"].commit} if spoil == spoil_tag else {}
    assert hub.repos["shop/words"].tags == tags  # no version is marked before all have arrived
    assert hub.repos["shop/words-merged"].tags == {}
    assert (done.cards, done.receipts) == (CARDS, RECEIPTS)
    hub.heal()
    again = publish(BOTH, adapter, merged, CARDS, tested, RECEIPTS, "v1")
    assert again.status == "pushed"
    assert again.repos["adapter"].commit == done.repos["adapter"].commit
    assert all(len(repo.commits) == 2 for repo in hub.repos.values())


def test_a_taken_tag_is_refused_before_anything_is_sent(
    hub: HubServer, adapter: Adapter, merged: MergeResult, tested: Tested
) -> None:
    """Another card under the name of an older version."""
    publish(BOTH, adapter, merged, CARDS, tested, tag="v1")
    other: dict[Kind, str] = {kind: f"{card}Better.\n" for kind, card in CARDS.items()}
    done = publish(BOTH, adapter, merged, other, tested, tag="v1")
    assert done.status == "unpublished" and "has a tag v1 already" in done.reason
    assert all(len(repo.commits) == 2 for repo in hub.repos.values())


def test_the_first_push_that_fails_ends_it(
    hub: HubServer, adapter: Adapter, merged: MergeResult, tested: Tested
) -> None:
    """A dead Hub is not asked for each repo anew."""
    hub.fail("shop/words/commit/", 403)
    done = publish(BOTH, adapter, merged, CARDS, tested)
    assert (done.status, done.repos) == ("unpublished", {})
    assert done.reason.startswith("adapter: ") and "403" in done.reason
    assert list(hub.repos) == ["shop/words"] and hub.repos["shop/words"].files == {}


def test_a_publication_of_an_older_version_is_read(adapter: Adapter) -> None:
    """Records from before there were tags, receipts and reasons."""
    pushed = {"repo_id": "a/b", "url": "https://hub/a/b", "commit": "c" * 40}
    record = {"status": "pushed", "repos": {"adapter": pushed}, "cards": CARDS}
    read = Publication.model_validate_json(json.dumps(record))
    assert (read.reason, read.receipts, read.repos["adapter"].tag) == ("", {}, None)


def test_facts_reach_card_and_receipt(
    adapter: Adapter, merged: MergeResult, tested: Tested, tmp_path: Path
) -> None:
    """From the artifacts of a run to what anybody can check on the published folder."""
    metrics = {"base": {"rouge_l": 0.2}, "tuned": {"rouge_l": 0.9}}
    report = EvaluationReport(
        rows=3,
        held_out_rows=3,
        metrics=metrics,
        intervals={"tuned": {"rouge_l": Interval(mean=0.9, low=0.8, high=0.95, groups=3, rows=3)}},
        seconds={},
        predictions=[],
    )
    decision = PromotionDecision(subject="tuned", verdict="promoted", checks=[])
    facts = gather_facts(
        BOTH.model_copy(update={"base_license": "mit", "data_license": "cc0-1.0"}),
        Catalog(rows=None, source="shop/catalog", version="sha256:feed"),  # type: ignore[arg-type]
        adapter,
        merged,
        report,
        run_name="run",
        config_yaml="seed: 1\n",
        provenance=Provenance(code_commit="c0ffee", lock_hash=None, versions={}, python="3.11"),
        row_counts={"rows_read": 7, "quarantined": 1},
        decisions={"adapter": decision},
        tested=tested,
    )
    cards, receipts = write_cards(facts), write_receipts(facts)
    for told in ("0.90 (0.80 to 0.95)", "**promoted**", "| rows read | 7 |", "mit", "cc0-1.0"):
        assert told in cards["adapter"]
    assert "**promoted**" not in cards["merged"]
    receipt = json.loads(receipts["adapter"])
    assert receipt["adapter_hash"] == adapter.content_hash and receipt["verdict"] == "promoted"
    bundle = assemble_bundle(adapter.folder, cards["adapter"], tmp_path / "b", receipts["adapter"])
    found = hash_files(bundle)
    assert receipt["files"] == len(found) - 2
    del found["README.md"], found["receipt.json"]
    assert receipt["files_digest"] == digest_of(found)
