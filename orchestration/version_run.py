"""A pipeline on a version that is registered already: judged again, or published."""

from typing import Any

from orchestration.champion import follow_registry, require_registry
from orchestration.pipeline_run import RunOutcome, note_standing, run_configured
from orchestration.stack import use_stack
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import UserError
from vlmtune.tracking.registry import Registry, Version

EVALUATE, PUBLISH = "evaluate", "publish"


def run_on_version(
    name: str, config: FinetuneConfig, wanted: str | None, stack_name: str | None, use_cache: bool
) -> RunOutcome:
    """Run the pipeline `evaluate` or `publish` on a version of the config's catalog.

    Args:
        wanted: the version, as `v3` or `champion`; None for the champion when it is judged, for
            the newest unpublished version when it is published.

    Raises:
        UserError: there is no such version, or an artifact of it is not what was stored.
    """
    from steps.artifacts import find_artifact, load_artifact

    registry = require_registry(config, stack_name)
    stack = use_stack(stack_name)
    version = registry.find(wanted) if wanted else _usual_version(name, registry)
    for artifact_id in version.facts.artifacts.values():
        load_artifact(find_artifact(artifact_id))  # whole, even if all steps come from the cache
    arguments: dict[str, Any] = {"artifacts": version.facts.artifacts}
    if name == EVALUATE:
        champion = registry.champion()
        other = champion and champion.number != version.number
        arguments["champion"] = champion.as_rival() if champion and other else None
    made_from, number = version.facts.inputs, version.number
    outcome = run_configured(name, config, stack, made_from, use_cache, arguments, number)
    if name == PUBLISH:
        note_standing(outcome, registry, registry.find(number))
    follow_registry(registry)
    return outcome


def _usual_version(name: str, registry: Registry) -> Version:
    if name == EVALUATE:
        return registry.find("champion")
    waiting = [version for version in registry.versions() if version.published != "yes"]
    if not waiting:
        raise UserError(
            f"{registry.name} has no version that waits to be published.",
            "Name one to publish it again: --version v1. See `run.py versions`.",
        )
    return waiting[0]
