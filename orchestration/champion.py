"""Champion and challenger: which version is live, moved by hand or by a run that passed the gate.

MLflow's registry is the truth; ZenML's stages follow from it.
"""

from typing import Any

from orchestration.stack import use_stack
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import UserError
from vlmtune.tracking.registry import CHAMPION, Registry

PRODUCTION, ARCHIVED = "production", "archived"


def require_registry(config: FinetuneConfig, stack_name: str | None) -> Registry:
    """The registry of the config's catalog, on a stack.

    Raises:
        UserError: the stack has no MLflow tracker.
    """
    from steps.registry import open_registry

    stack = use_stack(stack_name)
    registry = open_registry(config.data.catalog_name)
    if registry is None:
        raise UserError(
            f"the stack {stack.name} has no MLflow tracker, and so no registry of versions.",
            "Add an experiment tracker of flavor mlflow to it.",
        )
    return registry


def follow_registry(registry: Registry | None) -> None:
    """Give ZenML's model versions the stages that follow from the registry's aliases."""
    if registry is None:
        return
    from zenml.client import Client

    client = Client()
    versions = registry.versions()
    if versions:
        _ensure(client.get_model, client.create_model, registry.name)
    for version in reversed(versions):
        key = (registry.name, f"v{version.number}")
        known = _ensure(client.get_model_version, client.create_model_version, *key)
        stage = PRODUCTION if CHAMPION in version.aliases else ARCHIVED
        if known.stage != stage:
            client.update_model_version(*key, stage=stage, force=True)


def _ensure(get: Any, create: Any, *key: str) -> Any:
    try:
        return get(*key)
    except KeyError:
        return create(*key)
