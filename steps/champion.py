"""The champion that a new model is compared with, loaded from its artifacts."""

from typing import TYPE_CHECKING, Any, Literal

from zenml.client import Client

from steps.artifacts import cause_of
from steps.context import run_context
from steps.made_from import own_inputs
from steps.registry import open_registry
from vlmtune.catalog.catalog import Catalog
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import UserError
from vlmtune.evaluation.results import CHAMPION
from vlmtune.models.base_model import BaseModelRef
from vlmtune.tracking.registry import LATEST, ChampionRef

if TYPE_CHECKING:
    from vlmtune.evaluation.comparison import Exam


def champion_now(
    champion: ChampionRef | Literal["latest"] | None, base: BaseModelRef, catalog: Catalog
) -> ChampionRef | None:
    """The version to beat; for a scheduled run it is looked up only now."""
    if champion != LATEST:
        return champion
    config = FinetuneConfig.model_validate(run_context().config)
    registry = open_registry(config.data.catalog_name)
    return registry.rival(own_inputs(base, catalog)) if registry else None


def rival_of(champion: ChampionRef | None, exam: "Exam", base: BaseModelRef) -> dict[str, Any]:
    """The champion as arguments of `compare`: its adapter if it is on the same base; else its
    answers, given before the new model's base is loaded.

    Raises:
        UserError: its artifacts cannot be read any more.
    """
    from vlmtune.models.adapter import attach_adapter
    from vlmtune.models.quantized import release_unused_memory

    if champion is None:
        return {}
    adapter = _artifact(champion, champion.adapter)
    if champion.base_revision == base.revision:
        return {"champion": adapter}
    model, processor = _artifact(champion, champion.quantized_model).load(champion.model)
    answers = exam.answers(CHAMPION, attach_adapter(model, adapter), processor, picture_test=False)
    del model
    release_unused_memory()
    return {"champion_answers": answers}


def _artifact(champion: ChampionRef, artifact_id: str) -> Any:
    try:
        return Client().get_artifact_version(artifact_id).load()
    except Exception as error:  # each artifact store has errors of its own
        raise UserError(
            f"the champion v{champion.number} cannot be read: {cause_of(error)}",
            "Make another version the champion: run.py promote VERSION.",
        ) from error
