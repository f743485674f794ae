"""The local stack is made once, also by two first-ever runs at the same moment."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

USE_STACK = """
from vlmtune.environment import prepare_environment
prepare_environment()
from orchestration.stack import use_stack
print("STACK", use_stack(None))
"""


def test_two_first_ever_runs_at_once(root: Path, tmp_path: Path) -> None:
    """Without the lock both would migrate the fresh store, and one would die."""
    script = tmp_path / "use_stack.py"
    script.write_text(USE_STACK)
    environment = os.environ | {
        "ZENML_CONFIG_PATH": str(tmp_path / "zenml"),
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err[-3000:]
        assert "STACK ActiveStack(name='vlmtune-local', tracker='vlmtune-local'" in out
    database = next((tmp_path / "zenml").rglob("zenml.db"))
    names = [row[0] for row in sqlite3.connect(database).execute("select name from stack")]
    assert sorted(names) == ["default", "vlmtune-local"]
