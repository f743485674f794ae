"""Environment variables that have to be set before a heavy package is imported.

ZenML, MLflow, TRL and the Hub client each send usage data unless told otherwise. vlmtune tells
them otherwise, unless the user sets `VLMTUNE_TELEMETRY=1`.
"""

import logging
import os
import sys
import warnings
from typing import Any

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
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # no line for each table of a fresh database
    # Threads that wait by spinning make every step ten times slower on a machine that is busy
    # with anything else.
    "OMP_WAIT_POLICY": "PASSIVE",
}

NO_TERMINAL = {  # bars and colours are for people; in a log file they are noise
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "ZENML_LOGGING_COLORS_DISABLED": "true",
}

NOISY_LOGGERS = (
    "bitsandbytes",  # tells of an optional CPU kernel at each start
    "alembic",
    "httpx2",  # a line for each request to the Hub
    # It tells of autologging that it cannot switch off, since nobody has switched it on.
    "zenml.integrations.mlflow.experiment_trackers.mlflow_experiment_tracker",
)


def prepare_environment() -> None:
    """Switch telemetry off (unless `VLMTUNE_TELEMETRY=1`) and set quiet, reproducible defaults.

    Must run before zenml, mlflow, trl or huggingface_hub is imported: they read these variables
    once, at import.
    """
    if os.environ.get("VLMTUNE_TELEMETRY") != "1":
        os.environ.update(TELEMETRY_OFF)
    for name, value in QUIET_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        for name, value in NO_TERMINAL.items():
            os.environ.setdefault(name, value)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Notices from one library to another, about names that none of our code uses.
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")


def hide_traces_of(expected: type[Exception]) -> None:
    """Log errors of this kind without their stack trace, whoever logs them.

    ZenML logs the trace of whatever fails a step; an error that is meant for the user says all
    there is to know in one line. A crash keeps its trace: nobody watched when it happened.
    """
    make_record = logging.getLogRecordFactory()

    def record_without_trace(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        if record.exc_info and isinstance(record.exc_info[1], expected):
            record.exc_info = None
        return record

    logging.setLogRecordFactory(record_without_trace)
