"""The local stack and its stores are made once, also by two first-ever runs at the same moment."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

USE_STACK = """
import sys, time
from pathlib import Path
from vlmtune.environment import prepare_environment
prepare_environment()
from orchestration.stack import use_stack
print("STACK", use_stack(None))
from steps.registry import open_registry
Path(sys.argv[1]).touch()
deadline = time.monotonic() + 120
while not Path(sys.argv[2]).exists() and time.monotonic() < deadline:  # at the same moment
    time.sleep(0.001)
print("VERSIONS", open_registry("shop").versions())
"""


def test_two_first_ever_runs_at_once(root: Path, tmp_path: Path) -> None:
    """Without the lock both would migrate the fresh stores, ZenML's and MLflow's, and one would
    die."""
    script = tmp_path / "use_stack.py"
    script.write_text(USE_STACK)
    environment = os.environ | {
        "ZENML_CONFIG_PATH": str(tmp_path / "zenml"),
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }
    marks = [str(tmp_path / "one"), str(tmp_path / "two")]
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *order],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for order in (marks, marks[::-1])
    ]
    for process in processes:
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err[-3000:]
        assert "STACK ActiveStack(name='vlmtune-local', tracker='vlmtune-local'" in out
        assert "VERSIONS []" in out
    database = next((tmp_path / "zenml").rglob("zenml.db"))
    names = [row[0] for row in sqlite3.connect(database).execute("select name from stack")]
    assert sorted(names) == ["default", "vlmtune-local"]
