"""Environment variables that have to be set, or taken away, before a heavy package is imported.

ZenML, MLflow, TRL and the Hub client each send usage data unless told otherwise. vlmtune tells
them otherwise, unless the user sets `VLMTUNE_TELEMETRY=1`.

What other projects left in the shell decides nothing here: docs/operations.md lists the variables
that count.
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

# They decide where runs and versions are stored (MLflow, ZenML), how training is set up
# (accelerate), or how many processes train together (torchrun, MPI).
IGNORED_PREFIXES = (
    "MLFLOW_",
    "_MLFLOW_",
    "ZENML_",
    "ACCELERATE_",
    "FSDP_",
    "PARALLELISM_CONFIG_",
    "TORCHELASTIC_",
    "OMPI_COMM_WORLD_",
    "MV2_COMM_WORLD_",
    "PMI_",
)
IGNORED_NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "FORK_LAUNCHED",
)
HOME_OF_ZENML = "ZENML_CONFIG_PATH"  # its store, stacks and log-ins
CREDENTIALS = (  # who asks, and how the connection is secured; never where it goes
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_UC_OSS_TOKEN",
    "MLFLOW_MYSQL_SSL_CA",
    "MLFLOW_MYSQL_SSL_CERT",
    "MLFLOW_MYSQL_SSL_KEY",
    "ZENML_STORE_API_KEY",
    "ZENML_STORE_API_TOKEN",
    "ZENML_STORE_USERNAME",
    "ZENML_STORE_PASSWORD",
    "ZENML_STORE_VERIFY_SSL",
    "ZENML_STORE_SSL_CA",
    "ZENML_STORE_SSL_CERT",
    "ZENML_STORE_SSL_KEY",
    "ZENML_SECRETS_STORE_ENCRYPTION_KEY",
)
# Telemetry and how much is printed are the user's choice.
KEPT = frozenset((HOME_OF_ZENML, *CREDENTIALS, *TELEMETRY_OFF, *QUIET_DEFAULTS, *NO_TERMINAL))

NOISY_LOGGERS = (
    "bitsandbytes",  # tells of an optional CPU kernel at each start
    "alembic",
    "httpx2",  # a line for each request to the Hub
    # It tells of autologging that it cannot switch off, since nobody has switched it on.
    "zenml.integrations.mlflow.experiment_trackers.mlflow_experiment_tracker",
)


def drop_inherited_variables() -> list[str]:
    """Take from this process, and its children, what other projects left in the shell.

    Must run before zenml, mlflow or accelerate is imported.

    Returns:
        The names of the variables that count for nothing here.
    """
    ignored = sorted(
        name
        for name in os.environ
        if (name.startswith(IGNORED_PREFIXES) or name in IGNORED_NAMES) and name not in KEPT
    )
    for name in ignored:
        del os.environ[name]
    return ignored


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
