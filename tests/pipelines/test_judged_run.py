"""A model that computes NaN ends in a failed gate with a report, through real steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

JUDGED_RUN = Path(__file__).with_name("judged_run.py")


def test_a_nan_model_fails_the_gate_with_a_report(tmp_path: Path) -> None:
    """Its figures are stored and read by the next step; the summary is JSON, with null for them."""
    environment = os.environ | {
        "ZENML_CONFIG_PATH": str(tmp_path / "zenml"),
        "ZENML_ANALYTICS_OPT_IN": "false",
    }
    folder = tmp_path / "run"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(JUDGED_RUN), str(folder)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "GateFailed: the gate failed the tuned model: finite: " in done.stdout + done.stderr
    text = (folder / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert summary["gate"]["verdict"] == "failed"
    assert summary["metrics"]["tuned"]["answer_loss"] is None
    assert summary["metrics"]["base"]["answer_loss"] == 1.0
    assert summary["steps"]["judge"]["status"] == "completed"
    assert "The gate fails this model" in (folder / "report.html").read_text()
