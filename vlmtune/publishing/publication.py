"""What is published and where; without a repo, what is ready to be."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vlmtune.catalog.catalog import Catalog
from vlmtune.config.publishing import HubConfig
from vlmtune.errors import UserError
from vlmtune.evaluation.gate import PromotionDecision
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.models.adapter import Adapter
from vlmtune.models.merge_record import MergeResult
from vlmtune.publishing.bundle import CARD, RECEIPT, assemble_bundle
from vlmtune.publishing.facts import CardFacts
from vlmtune.publishing.hub import PushedRepo, push_folder, tag_commit
from vlmtune.publishing.model_card import render_model_card
from vlmtune.publishing.patience import Patience
from vlmtune.publishing.receipt import make_receipt
from vlmtune.publishing.room import room_for
from vlmtune.publishing.same_files import require_same
from vlmtune.revision import folder_size, hash_files
from vlmtune.tracking.provenance import Provenance

Kind = Literal["adapter", "merged"]


class Publication(BaseModel):
    """The outcome of publishing.

    Attributes:
        status: pushed, all of it; ready (no repo is configured, or it may not become the
            champion); kept_back by the gate; or unpublished, since a push failed.
        reason: why it was kept back, is unpublished or may not become the champion, in one line.
        repos: adapter and / or merged -> where it was pushed to and found to have arrived. If
            unpublished, those that had been before the push that failed.
        cards: adapter and / or merged -> text of the model card.
        receipts: adapter and / or merged -> text of the receipt.
    """

    model_config = ConfigDict(frozen=True)

    status: Literal["pushed", "ready", "kept_back", "unpublished"]
    reason: str = ""
    repos: dict[Kind, PushedRepo] = {}
    cards: dict[Kind, str]
    receipts: dict[Kind, str] = {}


def repo_of(hub: HubConfig, kind: Kind) -> str | None:
    """The adapter's repo is `repo_id`; the merged model's has the suffix -merged."""
    if hub.repo_id is None:
        return None
    return hub.repo_id if kind == "adapter" else f"{hub.repo_id}-merged"


def folders_to_publish(hub: HubConfig, adapter: Adapter, merged: MergeResult) -> dict[Kind, Path]:
    """Kind -> folder, for what the config wants pushed and what there is."""
    folders: dict[Kind, Path | None] = {"adapter": adapter.folder, "merged": merged.folder}
    return {kind: folder for kind in hub.push if (folder := folders[kind]) is not None}


def tested_files(decision: PromotionDecision, merged: MergeResult) -> dict[Kind, Mapping[str, str]]:
    """Kind -> name -> SHA-256 of what was tested: judged by the gate, or proven by the merge."""
    return {"adapter": decision.adapter_files, "merged": merged.record.files}


def require_tested(folders: Mapping[Kind, Path], tested: Mapping[Kind, Mapping[str, str]]) -> None:
    """Refuse folders that are not, card and receipt aside, what was tested.

    Args:
        folders: as of `folders_to_publish`, or the bundles made of them.
        tested: as of `tested_files`.

    Raises:
        NotWhatWasTested: a file is changed, missing or added.
    """
    for kind, folder in folders.items():
        require_same(
            _without_written(tested.get(kind, {})),
            _without_written(hash_files(folder)),
            f"the {kind} that is to be published",
            "Nothing was sent. Run again; if it comes back, look for what changes the artifact "
            "store.",
        )


def gather_facts(
    hub: HubConfig,
    catalog: Catalog,
    adapter: Adapter,
    merged: MergeResult,
    evaluation: EvaluationReport,
    run_name: str,
    config_yaml: str,
    provenance: Provenance,
    row_counts: Mapping[str, int] | None = None,
    decisions: Mapping[Kind, PromotionDecision] | None = None,
    tested: Mapping[Kind, Mapping[str, str]] | None = None,
) -> dict[Kind, CardFacts]:
    """What is known of each kind that is to be published.

    Args:
        row_counts: of the row ledger.
        decisions: of the gate, on each kind.
        tested: as in `publish`.
    """
    base = adapter.record.base
    return {
        kind: CardFacts(
            kind=kind,
            repo_id=repo_of(hub, kind),
            base_id=base.id,
            base_revision=base.revision,
            license=hub.license,
            base_license=hub.base_license,
            data_license=hub.data_license,
            catalog_source=catalog.source,
            catalog_digest=catalog.version,
            row_counts=dict(row_counts or {}),
            rows_train=adapter.record.train_rows,
            rows_held_out=evaluation.held_out_rows,
            metrics=evaluation.metrics,
            intervals=evaluation.intervals,
            decision=(decisions or {}).get(kind),
            adapter_hash=adapter.content_hash,
            files=_without_written((tested or {}).get(kind, {})),
            config_yaml=config_yaml,
            code_commit=provenance.code_commit,
            lock_hash=provenance.lock_hash,
            mlflow_run_id=adapter.record.mlflow_run_id,
            run_name=run_name,
            versions=provenance.versions,
        )
        for kind in folders_to_publish(hub, adapter, merged)
    }


def write_cards(facts: Mapping[Kind, CardFacts]) -> dict[Kind, str]:
    """A model card for each kind."""
    return {kind: render_model_card(known) for kind, known in facts.items()}


def write_receipts(facts: Mapping[Kind, CardFacts]) -> dict[Kind, str]:
    """A receipt for each kind."""
    return {kind: make_receipt(known).to_json() for kind, known in facts.items()}


def publish(
    hub: HubConfig,
    adapter: Adapter,
    merged: MergeResult,
    cards: dict[Kind, str],
    tested: Mapping[Kind, Mapping[str, str]],
    receipts: dict[Kind, str] | None = None,
    tag: str | None = None,
    patience: Patience | None = None,
) -> Publication:
    """Push each kind to its repo; without a repo_id only say that it is ready, which it is if
    it is what was tested.

    All bundles are made and compared with what was tested before the first is sent: one that is
    refused stops the others too. Tags are set when all have arrived. A push that fails ends it:
    the publication says why, and what had arrived by then.

    Args:
        cards, receipts: texts of README.md and receipt.json.
        tested: as of `tested_files`.
        tag: name of the version, such as v3, the same in all repos.
        patience: with a Hub that is busy or does not answer.

    Raises:
        NotWhatWasTested: a folder is no longer what was tested; nothing was sent.
        UserError: there is no room to lay the files out; nothing was sent.
        ValueError: a folder holds a file that may be a pickle; nothing was sent.
    """
    outcome = Publication(status="ready", cards=cards, receipts=receipts or {})
    folders = folders_to_publish(hub, adapter, merged)
    if hub.repo_id is None:
        require_tested(folders, tested)
        return outcome
    repos: dict[Kind, PushedRepo] = {}
    with tempfile.TemporaryDirectory(prefix="vlmtune-push-") as scratch:
        bundles = _lay_out(folders, cards, outcome.receipts, Path(scratch))
        require_tested(bundles, tested)
        files = {kind: hash_files(bundle) for kind, bundle in bundles.items()}
        try:
            for kind, bundle in bundles.items():
                repo_id, message = str(repo_of(hub, kind)), f"vlmtune: {kind}"
                repos[kind] = push_folder(
                    bundle, repo_id, hub.private, message, tag, files[kind], patience
                )
            if tag is not None:
                for kind in bundles:
                    repos[kind] = tag_commit(repos[kind], tag, patience)
        except UserError as error:
            failed = {"status": "unpublished", "reason": f"{kind}: {error}", "repos": repos}
            return outcome.model_copy(update=failed)
    return outcome.model_copy(update={"status": "pushed", "repos": repos})


def _lay_out(
    folders: Mapping[Kind, Path],
    cards: Mapping[Kind, str],
    receipts: Mapping[Kind, str],
    scratch: Path,
) -> dict[Kind, Path]:
    """A bundle for each kind, made of hard links where the file system is the same."""
    with room_for("lay out what is published", sum(map(folder_size, folders.values()))):
        return {
            kind: assemble_bundle(folder, cards[kind], scratch / kind, receipts.get(kind))
            for kind, folder in folders.items()
        }


def _without_written(files: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in files.items() if name not in (CARD, RECEIPT)}
