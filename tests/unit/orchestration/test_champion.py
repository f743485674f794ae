"""Stages of ZenML that follow from the registry, on a real ZenML store and a real MLflow."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import json, sys
from vlmtune.environment import prepare_environment
prepare_environment()
from orchestration.champion import follow_registry, require_registry
from vlmtune.config.loading import load_config
from vlmtune.config.model import ModelConfig
from vlmtune.tracking.registry import VersionFacts
from pathlib import Path
from zenml.client import Client

registry = require_registry(load_config(Path("configs/demo.yaml")), None)

def stages():
    follow_registry(registry)
    found = Client().list_model_versions(registry.name, hydrate=True)
    return {version.name: version.stage for version in found.items}

seen = []
follow_registry(registry)
for number in (1, 2):
    facts = VersionFacts(inputs=str(number), content=str(number), run_name="run", artifacts={},
                         base_revision="sha256:0", model=ModelConfig(id="demo/model"))
    version = registry.register(facts, f"/models/{number}", None)
    seen.append(stages())
    registry.promote(version, "passed")
    seen.append(stages())
registry.rollback("bad")
seen.append(stages())
Path(sys.argv[1]).write_text(json.dumps(seen))
"""


def test_stages_follow_the_registry(tmp_path: Path) -> None:
    """The champion is in production, whoever was there before is archived."""
    environment = {
        **{key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ},
        "HOME": str(tmp_path),
        "ZENML_CONFIG_PATH": str(tmp_path / "zenml"),
        "PYTHONPATH": str(ROOT),
    }
    answer, script = tmp_path / "answer.json", tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(answer)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(answer.read_text()) == [
        {"v1": "archived"},
        {"v1": "production"},
        {"v1": "production", "v2": "archived"},
        {"v1": "archived", "v2": "production"},
        {"v1": "production", "v2": "archived"},
    ]
