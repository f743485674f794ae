"""Judge a registered version again, without training: other rows, other rules, a new champion.

python run.py --pipeline evaluate --version v3
"""

from typing import Any

from zenml import pipeline
from zenml.enums import ExecutionMode

from steps.artifacts import find_artifact
from steps.evaluate_generations import evaluate_generations
from vlmtune.config.tree import FinetuneConfig
from vlmtune.tracking.registry import ChampionRef


@pipeline(name="evaluate", execution_mode=ExecutionMode.FAIL_FAST)
def evaluate(
    config: FinetuneConfig,
    artifacts: dict[str, str],
    champion: ChampionRef | None,
    tracker: str | None,
) -> None:
    """The version's own held-out rows, base and adapter -> comparison and the gate's verdict.

    Args:
        artifacts: ids of the version's artifacts, by name.
        champion: the version that is live; None if there is none, or it is this one.
        tracker: name of the stack's experiment tracker, if it has one.
    """
    tracked: dict[str, Any] = {"experiment_tracker": tracker} if tracker else {}
    names = ("catalog", "examples", "quantized_model", "adapter")
    evaluate_generations.with_options(**tracked)(
        *(find_artifact(artifacts[name]) for name in names),
        config.model,
        config.evaluation,
        config.generation,
        config.gate,
        champion,
        config.tracking.example_rows,
    )
