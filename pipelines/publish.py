"""Publish a registered version, without training it again: after a push that failed, or to a repo
that was named later.

python run.py --pipeline publish --set hub.repo_id=owner/name
"""

from typing import Any

from zenml import pipeline
from zenml.enums import ExecutionMode

from steps.artifacts import find_artifact
from steps.push_to_hub import push_to_hub
from vlmtune.config.tree import FinetuneConfig


@pipeline(name="publish", execution_mode=ExecutionMode.FAIL_FAST)
def publish(config: FinetuneConfig, artifacts: dict[str, str], tracker: str | None) -> None:
    """The version's adapter and merged model -> publication.

    Args:
        artifacts: ids of the version's artifacts, by name.
        tracker: name of the stack's experiment tracker, if it has one.
    """
    tracked: dict[str, Any] = {"experiment_tracker": tracker} if tracker else {}
    made = {name: find_artifact(known) for name, known in artifacts.items()}
    push_to_hub.with_options(enable_cache=False, **tracked, secrets=config.hub.secrets)(
        made["catalog"],
        made["ledger"],
        made["adapter"],
        made["merged_model"],
        made["merged_evaluation"],
        made["merged_decision"],
        config.hub,
        config.model,
    )
