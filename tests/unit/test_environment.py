"""Nothing is sent unless the user says so; the library stays free of ZenML and MLflow."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmtune.environment import CREDENTIALS, IGNORED_NAMES, TELEMETRY_OFF

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
# What the libraries take for a CI or a test: they would be silent anyway.
CI_VARIABLES = (
    "CI",
    "GITHUB_ACTIONS",
    "PYTEST_CURRENT_TEST",
    "PYTEST_VERSION",
    "BUILD_ID",
    "JENKINS_URL",
    "TRAVIS",
    "CIRCLECI",
    "GITLAB_CI",
    "TF_BUILD",
    "CODEBUILD_BUILD_ARN",
)

ASK_THE_LIBRARIES = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
import os

pings = []
came = threading.Event()

class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        pings.append(self.path)
        self.send_response(403 if self.command == "CONNECT" else 200)
        self.end_headers()
        if self.path.startswith("/api/telemetry"):
            came.set()
    do_GET = do_CONNECT = do_HEAD  # CONNECT: all that goes elsewhere comes here by the proxy
    def log_message(self, *arguments):
        pass

server = HTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
here = f"http://127.0.0.1:{server.server_port}"
os.environ |= {"HF_ENDPOINT": here, "NO_PROXY": "127.0.0.1"}
os.environ |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), here)

from vlmtune.environment import prepare_environment
prepare_environment()
from huggingface_hub.utils import send_telemetry
send_telemetry("trl/SFTTrainer", library_name="trl", library_version="1")
from mlflow.telemetry.utils import is_telemetry_disabled
from zenml.config.global_config import GlobalConfiguration
answers = {
    "mlflow": not is_telemetry_disabled(),
    "zenml": GlobalConfiguration().analytics_opt_in,
}
came.wait(3)
print(json.dumps(answers | {"hub": came.is_set(), "pings": pings}))
"""


@pytest.mark.parametrize("wanted", [False, True], ids=["default", "VLMTUNE_TELEMETRY=1"])
def test_telemetry(wanted: bool, run_python: RunPython, tmp_path: Path) -> None:
    """By default ZenML and MLflow call their telemetry off and the Hub client (through which
    TRL reports) sends nothing; with VLMTUNE_TELEMETRY=1 the libraries decide for themselves.
    """
    clean: dict[str, str | None] = dict.fromkeys((*CI_VARIABLES, *TELEMETRY_OFF))
    clean |= {
        "VLMTUNE_TELEMETRY": "1" if wanted else None,
        "HF_HUB_OFFLINE": None,
        "ZENML_CONFIG_PATH": str(tmp_path),
        "HOME": str(tmp_path),
    }
    done = run_python("-c", ASK_THE_LIBRARIES, env=clean)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    pings = answers.pop("pings")
    assert answers == {"mlflow": wanted, "zenml": wanted, "hub": wanted}
    assert bool(pings) is wanted, pings


IMPORT_ALL = """
import importlib, pkgutil, sys

import vlmtune
names = [module.name for module in pkgutil.walk_packages(vlmtune.__path__, "vlmtune.")]
for name in names:
    importlib.import_module(name)
print(len(names), sorted({"zenml", "mlflow"} & set(sys.modules)))
"""


def test_library_without_zenml_and_mlflow(run_python: RunPython, root: Path) -> None:
    """Importing each module of vlmtune brings in neither ZenML nor MLflow."""
    done = run_python("-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    packages = [path.parent for path in (root / "vlmtune").rglob("__init__.py")]
    modules = sum(len(list(package.glob("*.py"))) for package in packages) - 1
    assert done.stdout.splitlines()[-1] == f"{modules} []"


def test_config_and_catalog_stay_light(run_python: RunPython) -> None:
    """Checking a config and resolving its names needs none of the heavy libraries."""
    code = (
        "import sys, vlmtune.config.loading, orchestration.inputs\n"
        "print(sorted({'torch', 'transformers', 'trl', 'datasets', 'pandas', 'zenml', 'mlflow'}"
        " & set(sys.modules)))"
    )
    done = run_python("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_user_settings_are_kept(run_python: RunPython) -> None:
    """Defaults that are no matter of telemetry give way to what the user has set."""
    code = (
        "import os\nfrom vlmtune.environment import prepare_environment\nprepare_environment()\n"
        "print(os.environ['TOKENIZERS_PARALLELISM'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    )
    env = {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_DISABLE_TELEMETRY": "0"}
    assert run_python("-c", code, env=env).stdout.split() == ["true", "1"]


LEFT_IN_THE_SHELL = (
    *IGNORED_NAMES,
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_RUN_ID",
    "MLFLOW_WORKSPACE",
    "MLFLOW_ENABLE_ASYNC_LOGGING",
    "ZENML_STORE_URL",
    "ZENML_STORE_TYPE",
    "ZENML_LOCAL_STORES_PATH",
    "ZENML_REPOSITORY_PATH",
    "ZENML_ACTIVE_STACK_ID",
    "ZENML_ACTIVE_PROJECT_ID",
    "ZENML_SECRETS_STORE_TYPE",
    "ZENML_PREVENT_CLIENT_SIDE_CACHING",
    "ZENML_SERVER",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "ACCELERATE_USE_FSDP",
    "FSDP_OFFLOAD_PARAMS",
    "PARALLELISM_CONFIG_TP_SIZE",
    "TORCHELASTIC_RUN_ID",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
)
KEPT = (
    *CREDENTIALS,
    "ZENML_CONFIG_PATH",
    "VLMTUNE_TELEMETRY",
    "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "DATABRICKS_TOKEN",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MLFLOW_LOGGING_LEVEL",
)


def test_what_others_left_in_the_shell_is_ignored(run_python: RunPython) -> None:
    """And named; credentials, and what belongs to the machine or to vlmtune, stay."""
    code = (
        "import json, os\nfrom vlmtune.environment import drop_inherited_variables\n"
        "print(json.dumps([drop_inherited_variables(), list(os.environ)]))"
    )
    done = run_python("-c", code, env=dict.fromkeys((*LEFT_IN_THE_SHELL, *KEPT), "1"))
    ignored, left = json.loads(done.stdout)
    assert ignored == sorted(LEFT_IN_THE_SHELL)
    assert set(KEPT) <= set(left) and not set(left) & set(LEFT_IN_THE_SHELL)


def test_help_says_nothing_of_it(run_python: RunPython) -> None:
    """It is about runs and versions; an unknown option is still one clear error."""
    done = run_python("run.py", "--help", env={"MLFLOW_RUN_ID": "1"})
    assert (done.returncode, done.stderr) == (0, "")


def test_training_waits_for_no_other_process(run_python: RunPython) -> None:
    """Two processes that should train together would wait for each other for ever."""
    code = (
        "from vlmtune.environment import drop_inherited_variables\ndrop_inherited_variables()\n"
        "from accelerate import PartialState\nprint(PartialState(cpu=True).num_processes)"
    )
    launched = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    env = launched | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    assert run_python("-c", code, env=env).stdout.split() == ["1"]
