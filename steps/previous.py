"""Which catalog a run's split is carried on from, and which it is compared with.

That is the catalog of the last model that the gate has promoted; on a stack without a registry,
of the last completed run.
"""

from typing import Any

from pydantic_core import to_json
from zenml.client import Client

from steps.artifacts import cause_of
from steps.registry import open_registry
from vlmtune.catalog.loading import PreviousCatalog
from vlmtune.config.data import PROMOTED, DataConfig, PromptConfig
from vlmtune.config.model import ModelConfig
from vlmtune.errors import UserError
from vlmtune.models.base_model import BaseModelRef
from vlmtune.revision import hash_text

LEDGER, CATALOG = "ledger", "catalog"
RUNS_LOOKED_AT = 50


def ledger_inputs(
    data: DataConfig, prompt: PromptConfig, model: ModelConfig, base: BaseModelRef, version: str
) -> str:
    """Fingerprint of all that a ledger is made from, but for the previous one."""
    return hash_text(to_json([data, prompt, model, base, version]).decode())


def find_previous(data: DataConfig, inputs: str) -> str | None:
    """Id of the ledger whose split is carried on; None if there is none.

    A run with the same inputs as an earlier one takes the same ledger as that one did: an
    unchanged rerun comes from the cache, although a run was completed since.

    Raises:
        UserError: `data.previous` names a run that there is not.
    """
    if data.previous is None:
        return None
    if data.previous != PROMOTED:
        return str(_ledger_of_run(data.previous).id)
    ledgers = {
        run: ledger
        for run, ledger in _ledgers_of_runs()
        if ledger.run_metadata.get("catalog_name") == data.catalog_name
    }
    for ledger in ledgers.values():
        if ledger.run_metadata.get("inputs") == inputs:
            return ledger.run_metadata.get("previous")
    registry = open_registry(data.catalog_name)
    promoted = list(ledgers) if registry is None else registry.promoted_runs()
    return next((str(ledgers[run].id) for run in promoted if run in ledgers), None)


def load_previous(ledger_id: str | None) -> PreviousCatalog | None:
    """The catalog and ledger that belong to an id of `find_previous`.

    Raises:
        UserError: they cannot be read any more.
    """
    if ledger_id is None:
        return None
    try:
        version = Client().get_artifact_version(ledger_id)
        catalog = version.step.outputs[CATALOG][0]
        return PreviousCatalog(catalog=catalog.load(), ledger=version.load(), id=ledger_id)
    except Exception as error:  # each artifact store has errors of its own
        raise UserError(
            f"the previous ledger {ledger_id} cannot be read: {cause_of(error)}",
            "Name another run in data.previous, or set it to null to begin a new split.",
        ) from error


def _ledgers_of_runs() -> list[tuple[str, Any]]:
    """Name and ledger of the completed finetune runs, newest first."""
    runs = Client().list_pipeline_runs(
        pipeline_name="finetune",
        status="completed",
        sort_by="desc:created",
        size=RUNS_LOOKED_AT,
        hydrate=True,
    )
    found = [(run.name, _ledger(run)) for run in runs.items]
    return [(name, ledger) for name, ledger in found if ledger]


def _ledger_of_run(name: str) -> Any:
    try:
        run = Client().get_pipeline_run(name, allow_name_prefix_match=False)
    except KeyError:
        raise UserError(
            f"data.previous names the run {name!r}, which ZenML does not know.",
            "Name a folder of runs/, or set data.previous to promoted or null.",
        ) from None
    ledger = _ledger(run)
    if ledger is None:
        raise UserError(f"the run {name} has no ledger.", "Name another run in data.previous.")
    return ledger


def _ledger(run: Any) -> Any:
    step = run.steps.get("load_dataset")
    versions = step.outputs.get(LEDGER) if step else None
    return versions[0] if versions else None
