"""What a stack that can schedule does when the time comes; run by test_reruns.py.

    python scheduled_run.py --set=KEY=VALUE ...

Prints EXECUTED and the steps that did not come from the cache.
"""

import sys
from pathlib import Path

from vlmtune.environment import prepare_environment

prepare_environment()

from zenml.client import Client  # noqa: E402

from orchestration.inputs import resolve_inputs  # noqa: E402
from orchestration.pipeline_run import configured_pipeline  # noqa: E402
from orchestration.stack import use_stack  # noqa: E402
from orchestration.training_plan import resolve_training  # noqa: E402
from vlmtune.config.loading import load_config  # noqa: E402
from vlmtune.tracking.registry import LATEST  # noqa: E402

if __name__ == "__main__":
    overrides = [word.removeprefix("--set=") for word in sys.argv[1:]]
    config = load_config(Path("configs/demo.yaml"), overrides)
    base = resolve_inputs(config).base
    config, _ = resolve_training(config, base)
    stack = use_stack(None)
    configured_pipeline("finetune", config, "scheduled", use_cache=True, made_from="")(
        config=config,
        catalog_version=None,
        previous=None,
        base=base,
        champion=LATEST,
        registered=False,
        tracker=stack.tracker,
    )
    steps = Client().get_pipeline_run("scheduled").steps
    print("EXECUTED", *sorted(n for n, step in steps.items() if step.status.value != "cached"))
