"""Where versions live is decided by the config and the stack, not by the shell."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestration.places import without_credentials

REGISTER = """
import json, sys
from pathlib import Path

from orchestration.champion import require_registry
from orchestration.places import find_places
from vlmtune.config.loading import load_config
from vlmtune.config.model import ModelConfig
from vlmtune.environment import prepare_environment
from vlmtune.tracking.registry import VersionFacts

prepare_environment()
config = load_config(Path(sys.argv[1]))
registry = require_registry(config, None)
facts = VersionFacts(inputs="1", content="1", run_name="the-run", artifacts={},
                     base_revision="sha256:0", model=ModelConfig(id="demo/model"))
registry.promote(registry.register(facts, "/models/1", None), "passed")
print(json.dumps(find_places(config)))
"""


def test_versions_are_found_whatever_the_shell_says(
    run_python: Callable[..., Any],
    config_values: dict[str, Any],
    write_config: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Addresses of other stores, runs and experiments are ignored and named in one line; the
    places are those of stack and config, with no word of a password."""
    config, script = write_config(config_values), tmp_path / "register.py"
    script.write_text(REGISTER)
    home = {"ZENML_CONFIG_PATH": str(tmp_path / "zenml")}
    done = run_python(str(script), str(config), env=home)
    assert done.returncode == 0, done.stderr
    places = json.loads(done.stdout.splitlines()[-1])
    store = Path(places["artifact_store"])
    assert store.is_relative_to(tmp_path / "zenml")
    assert places == {
        "zenml_config": str(tmp_path / "zenml"),
        "zenml_store": f"sqlite:///{tmp_path}/zenml/local_stores/default_zen_store/zenml.db",
        "stack": "vlmtune-local",
        "artifact_store": str(store),
        "mlflow_tracking": f"sqlite:///{store}/mlflow.db",
        "mlflow_registry": f"sqlite:///{store}/mlflow.db",
        "registered_model": places["registered_model"],
        "work_dir": config_values["output"]["work_dir"],
    }
    elsewhere = {
        "MLFLOW_EXPERIMENT_NAME": "another",
        "MLFLOW_REGISTRY_URI": f"sqlite:///{tmp_path}/elsewhere.db",
        "MLFLOW_RUN_ID": "0123456789abcdef0123456789abcdef",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/elsewhere.db",
        "RANK": "1",
        "WORLD_SIZE": "2",
        "ZENML_ACTIVE_STACK_ID": "00000000-0000-0000-0000-000000000000",
        "ZENML_LOCAL_STORES_PATH": str(tmp_path / "elsewhere"),
        "ZENML_STORE_URL": f"sqlite:///{tmp_path}/elsewhere-zenml.db",
    }
    done = run_python("run.py", "versions", "--config", str(config), env=home | elsewhere)
    assert done.returncode == 0, done.stderr
    assert "champion" in done.stdout and "the-run" in done.stdout
    assert f"ignored (see docs/operations.md): {', '.join(elsewhere)}\n" in done.stderr
    assert not list(tmp_path.glob("elsewhere*"))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@host:5000/path?token=secret", "https://host:5000/path"),
        ("postgresql://me:sec@ret@db/mlflow", "postgresql://db/mlflow"),
        ("sqlite:////a/b@c/mlflow.db", "sqlite:////a/b@c/mlflow.db"),
        ("/a/local/folder", "/a/local/folder"),
    ],
)
def test_no_credentials_in_an_address(address: str, shown: str) -> None:
    """A summary is passed on."""
    assert without_credentials(address) == shown
