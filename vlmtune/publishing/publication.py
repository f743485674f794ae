"""What is published and where; without a repo, what is ready to be."""

import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vlmtune.catalog.catalog import Catalog
from vlmtune.config.publishing import HubConfig
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.models.adapter import Adapter
from vlmtune.models.merging import MergeResult
from vlmtune.publishing.bundle import assemble_bundle
from vlmtune.publishing.hub import PushedRepo, push_folder
from vlmtune.publishing.model_card import CardFacts, render_model_card
from vlmtune.tracking.provenance import Provenance

Kind = Literal["adapter", "merged"]


class Publication(BaseModel):
    """The outcome of publishing.

    Attributes:
        status: pushed, or ready (nothing was pushed because no repo is configured).
        repos: adapter and / or merged -> where it was pushed to.
        cards: adapter and / or merged -> text of the model card.
    """

    model_config = ConfigDict(frozen=True)

    status: Literal["pushed", "ready"]
    repos: dict[Kind, PushedRepo] = {}
    cards: dict[Kind, str]


def repo_of(hub: HubConfig, kind: Kind) -> str | None:
    """The adapter's repo is `repo_id`; the merged model's has the suffix -merged."""
    if hub.repo_id is None:
        return None
    return hub.repo_id if kind == "adapter" else f"{hub.repo_id}-merged"


def folders_to_publish(hub: HubConfig, adapter: Adapter, merged: MergeResult) -> dict[Kind, Path]:
    """Kind -> folder, for what the config wants pushed and what there is."""
    folders: dict[Kind, Path | None] = {"adapter": adapter.folder, "merged": merged.folder}
    return {kind: folder for kind in hub.push if (folder := folders[kind]) is not None}


def write_cards(
    hub: HubConfig,
    catalog: Catalog,
    adapter: Adapter,
    merged: MergeResult,
    evaluation: EvaluationReport,
    run_name: str,
    config_yaml: str,
    provenance: Provenance,
) -> dict[Kind, str]:
    """A model card for each kind that is to be published."""
    base = adapter.record.base
    return {
        kind: render_model_card(
            CardFacts(
                kind=kind,
                repo_id=repo_of(hub, kind),
                base_id=base.id,
                base_revision=base.revision,
                license=hub.license,
                catalog_source=catalog.source,
                catalog_digest=catalog.version,
                rows_train=adapter.record.train_rows,
                rows_held_out=evaluation.held_out_rows,
                metrics=evaluation.metrics,
                config_yaml=config_yaml,
                code_commit=provenance.code_commit,
                lock_hash=provenance.lock_hash,
                mlflow_run_id=adapter.record.mlflow_run_id,
                run_name=run_name,
                versions=provenance.versions,
            )
        )
        for kind in folders_to_publish(hub, adapter, merged)
    }


def publish(
    hub: HubConfig, adapter: Adapter, merged: MergeResult, cards: dict[Kind, str]
) -> Publication:
    """Push each kind to its repo; without a repo_id only say that it is ready.

    All bundles are made before the first is sent: one that is refused stops the others too.
    """
    if hub.repo_id is None:
        return Publication(status="ready", cards=cards)
    repos: dict[Kind, PushedRepo] = {}
    with tempfile.TemporaryDirectory(prefix="vlmtune-push-") as scratch:
        bundles = {
            kind: assemble_bundle(folder, cards[kind], Path(scratch) / kind)
            for kind, folder in folders_to_publish(hub, adapter, merged).items()
        }
        for kind, bundle in bundles.items():
            repo_id = repo_of(hub, kind)
            assert repo_id is not None
            repos[kind] = push_folder(bundle, repo_id, hub.private, f"vlmtune: {kind}")
    return Publication(status="pushed", repos=repos, cards=cards)
