"""Loading an artifact that is named by its record in ZenML instead of handed over to a step."""

from typing import Any

from zenml.client import Client

from vlmtune.errors import UserError
from vlmtune.manifest import MAKE_ANEW


def find_artifact(artifact_id: str) -> Any:
    """ZenML's record of an artifact.

    Raises:
        UserError: there is none.
    """
    try:
        return Client().get_artifact_version(artifact_id)
    except KeyError:
        raise UserError(
            f"ZenML has no artifact {artifact_id} (any more).",
            "Name the stack and the ZENML_CONFIG_PATH of the run that made it, or run again with "
            "--no-cache.",
        ) from None


def load_artifact(version: Any) -> Any:
    """The artifact of a version.

    Raises:
        UserError: it is not what was stored, or cannot be read any more.
    """
    try:
        return version.load()
    except UserError:
        raise
    except Exception as error:  # each artifact store has errors of its own
        raise UserError(
            f"the artifact {version.name} at {version.uri} cannot be read: {cause_of(error)}",
            MAKE_ANEW,
        ) from error


def cause_of(error: Exception) -> str:
    """Why an artifact cannot be read, as a part of a message that says what to do about it."""
    if isinstance(error, UserError):
        return error.problem
    return f"{type(error).__name__}: {error}."
