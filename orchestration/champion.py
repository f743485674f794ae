"""Champion and challenger: which version is live, moved by hand or by a run that passed the gate.

MLflow's registry is the truth; ZenML's stages follow from it.
"""

from typing import Any

from orchestration.stack import use_stack
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import UserError
from vlmtune.tracking.registry import CHAMPION, Registry, Version

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


def is_settled(registry: Registry | None, version: Version | None) -> bool:
    """Whether nothing is left to do for a version: it is registered, and the champion whose
    publication is known, or not due to be the champion. True without a registry."""
    if registry is None:
        return True
    if version is None:
        return False
    if CHAMPION in version.aliases:
        return version.published != "no"
    return registry.objection(version) is not None


def standing(registry: Registry, version: Version | None) -> dict[str, Any]:
    """What became of the version that a run was about, for its summary."""
    champion = registry.champion()
    live = version is not None and CHAMPION in version.aliases
    if version is None:
        said = f"{registry.name} has no version of this model: run again"
    elif live:
        said = f"v{version.number} is the champion"
    else:
        said = registry.objection(version) or f"v{version.number} is not the champion: run again"
        said += " (it is on the Hub)" if version.published == "yes" else ""
    return {
        "name": registry.name,
        "version": version.number if version else None,
        "champion": champion.number if champion else None,
        "live": live,
        "settled": is_settled(registry, version),
        "said": said,
    }


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
    from zenml.exceptions import EntityExistsError

    try:
        return get(*key)
    except KeyError:
        try:
            return create(*key)
        except EntityExistsError:  # another run has just made it
            return get(*key)
