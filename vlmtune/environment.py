"""Environment variables that have to be set before a heavy package is imported.

ZenML, MLflow, TRL and the Hub client each send usage data unless told otherwise. vlmtune tells
them otherwise, unless the user sets `VLMTUNE_TELEMETRY=1`.
"""

import os

TELEMETRY_OFF = {
    "ZENML_ANALYTICS_OPT_IN": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
}

QUIET_DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",  # no fork warning from data-loader workers
    "ZENML_ENABLE_RICH_TRACEBACK": "false",
    "PYTHONHASHSEED": "0",  # subprocesses iterate over sets in the same order
}


def prepare_environment() -> None:
    """Switch telemetry off (unless `VLMTUNE_TELEMETRY=1`) and set quiet, reproducible defaults.

    Must run before zenml, mlflow, trl or huggingface_hub is imported: they read these variables
    once, at import.
    """
    if os.environ.get("VLMTUNE_TELEMETRY") != "1":
        os.environ.update(TELEMETRY_OFF)
    for name, value in QUIET_DEFAULTS.items():
        os.environ.setdefault(name, value)
