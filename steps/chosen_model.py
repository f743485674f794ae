"""The trained model that a run's artifacts hold, for the step that describes with it."""

from typing import Any

from zenml.client import Client

from steps.artifacts import cause_of
from vlmtune.errors import UserError
from vlmtune.models.describer import ChosenModel, Describer


def open_describer(chosen: ChosenModel) -> Describer:
    """The merged model if there is one, else the 4-bit base with its adapter; not loaded yet.

    Raises:
        UserError: its artifacts cannot be read any more.
    """
    merged = _artifact(chosen, "merged_model")
    if merged.folder:
        return Describer(chosen.run, merged)
    return Describer(
        chosen.run, merged, _artifact(chosen, "quantized_model"), _artifact(chosen, "adapter")
    )


def _artifact(chosen: ChosenModel, name: str) -> Any:
    try:
        return Client().get_artifact_version(chosen.artifacts[name]).load()
    except Exception as error:  # each artifact store has errors of its own
        raise UserError(
            f"the {name} of the run {chosen.run} cannot be read: {cause_of(error)}",
            "Name another run with --model-run, or train again.",
        ) from error
