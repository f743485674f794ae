"""The ZenML stack a run uses: the user's own by name, or a local one that is made if needed.

The user's active stack is never changed: the choice holds for this process only.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from vlmtune.errors import UserError
from vlmtune.tracking.registry import make_database

logger = logging.getLogger(__name__)

LOCAL_STACK = "vlmtune-local"


@dataclass(frozen=True)
class ActiveStack:
    """What a run needs to know of its stack.

    Attributes:
        name: the stack's name.
        tracker: name of its experiment tracker; None if it has none.
        can_schedule: whether its orchestrator takes schedules.
        artifact_folder: local folder of its artifact store; None for a remote one.
    """

    name: str
    tracker: str | None
    can_schedule: bool
    artifact_folder: Path | None


def use_stack(name: str | None) -> ActiveStack:
    """Make a stack the active one for this process.

    Args:
        name: a stack of the user's; None for the local one, which is made if it is not there.

    Raises:
        UserError: there is no stack of that name.
    """
    # Two first-ever runs at once would both migrate the fresh stores, and one would die.
    with FileLock(_state_folder() / "vlmtune-setup.lock"):
        from zenml.client import Client

        client = Client()
        stack = _existing_stack(client, name) if name else _local_stack(client)
        os.environ["ZENML_ACTIVE_STACK_ID"] = str(stack.id)
        active = Client().active_stack
        tracker = active.experiment_tracker
        if tracker is not None and tracker.flavor == "mlflow":
            make_database(tracker.get_tracking_uri())
    if tracker is None:
        logger.warning("The stack %s has no experiment tracker: nothing goes to MLflow.", name)
    store = active.artifact_store
    return ActiveStack(
        name=stack.name,
        tracker=tracker.name if tracker else None,
        can_schedule=active.orchestrator.config.is_schedulable,
        artifact_folder=Path(store.path) if store.config.is_local else None,
    )


def _state_folder() -> Path:
    from zenml.config.global_config import GlobalConfiguration

    folder = Path(GlobalConfiguration().config_directory)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _existing_stack(client: Any, name: str) -> Any:
    try:
        return client.get_stack(name, allow_name_prefix_match=False)
    except KeyError:
        known = ", ".join(stack.name for stack in client.list_stacks(size=50).items)
        raise UserError(
            f"there is no ZenML stack named {name!r} (there are: {known}).",
            "Register it with `zenml stack register`, or leave --stack out.",
        ) from None


def _local_stack(client: Any) -> Any:
    """Local orchestrator, local artifact store, MLflow on sqlite inside that store."""
    from zenml.enums import StackComponentType

    try:
        return client.get_stack(LOCAL_STACK, allow_name_prefix_match=False)
    except KeyError:
        pass
    flavors = {
        StackComponentType.ORCHESTRATOR: "local",
        StackComponentType.ARTIFACT_STORE: "local",
        StackComponentType.EXPERIMENT_TRACKER: "mlflow",
    }
    components = {kind: _component(client, kind, flavor) for kind, flavor in flavors.items()}
    logger.info("Made the ZenML stack %s (your active stack stays as it was)", LOCAL_STACK)
    return client.create_stack(LOCAL_STACK, components=components)


def _component(client: Any, kind: Any, flavor: str) -> Any:
    try:
        found = client.get_stack_component(kind, LOCAL_STACK, allow_name_prefix_match=False)
    except KeyError:
        found = client.create_stack_component(
            name=LOCAL_STACK, flavor=flavor, component_type=kind, configuration={}
        )
    return found.id
