"""Which trained model describes, and what the run that made it decided: prompt, options, rules.

A model is named by its version in the registry, or by its run's folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.try_picture import open_run
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import UserError
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.describer import ChosenModel
from vlmtune.tracking.registry import Version

LATEST = Path("runs/latest")
PARTS = ("merged_model", "quantized_model", "adapter")


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with the run it comes from.

    Attributes:
        chosen: where its artifacts are.
        config: of the run.
        base: the base model that was trained on.
    """

    chosen: ChosenModel
    config: FinetuneConfig
    base: BaseModelRef

    def describe(self, config: FinetuneConfig) -> str:
        """What is going to write, in words."""
        merged = "merged model" if self.config.merge.enabled else "4-bit model with its adapter"
        size = config.describe.batch_size
        return f"the {merged} of {self.chosen.run}, by {config.describe.engine}, batch size {size}"


def model_of_run(folder: Path) -> TrainedModel:
    """The model that a finished run has left.

    Raises:
        UserError: no such run, or it did not come as far as a model.
    """
    run = open_run(folder)
    missing = [name for name in PARTS if name not in run.artifacts]
    if missing:
        raise UserError(
            f"the run at {folder} has no {missing[0]}.", "Name a run that finished: --model-run"
        )
    return TrainedModel(
        chosen=ChosenModel(
            run=_maker(run.summary),
            artifacts={name: run.artifacts[name] for name in PARTS},
        ),
        config=run.config,
        base=BaseModelRef.model_validate(run.summary["base_model"]),
    )


def model_of_version(version: Version) -> TrainedModel:
    """The model of a registered version.

    Raises:
        UserError: the run that made it is gone.
    """
    from zenml.client import Client

    from steps.artifacts import cause_of

    facts, client = version.facts, Client()
    try:
        run = client.get_pipeline_run(facts.run_name, allow_name_prefix_match=False)
        adapter = client.get_artifact_version(facts.artifacts["adapter"]).load()
    except Exception as error:  # each artifact store has errors of its own
        raise UserError(
            f"{version.name} v{version.number} cannot be read: {cause_of(error)}",
            "Name another version, or a run's folder: --model-run.",
        ) from error
    return TrainedModel(
        chosen=ChosenModel(
            run=facts.run_name, artifacts={name: facts.artifacts[name] for name in PARTS}
        ),
        config=FinetuneConfig.model_validate(run.config.extra["run_context"]["config"]),
        base=adapter.record.base,
    )


def _maker(summary: dict[str, Any]) -> str:
    """Name of the run that made the model: a run that took it from the cache made nothing, and a
    catalog is not to be described again because of its name."""
    return str(summary["artifacts"]["merged_model"]["made_by_run"] or summary["run_name"])
