"""Which model a run's folder stands for."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestration.trained_model import model_of_run
from vlmtune.config.loading import dump_config, load_config
from vlmtune.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
SUMMARY = {
    "run_name": "finetune-2",
    "base_model": {"id": "owner/base", "commit": "c" * 40, "content_hash": None, "revision": "c"},
    "artifacts": {
        name: {"id": f"id of {name}", "uri": "", "made_by_run": "finetune-1"}
        for name in ("catalog", "adapter", "quantized_model", "merged_model")
    },
}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run, all of which came from the cache of an earlier one."""
    config = load_config(ROOT / "configs" / "demo.yaml")
    (tmp_path / "config.resolved.yaml").write_text(dump_config(config))
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    return tmp_path


def test_a_finished_run(run_folder: Path) -> None:
    """Its model is that of the run that made it, its config its own."""
    trained = model_of_run(run_folder)
    assert trained.chosen.run == "finetune-1"
    assert trained.chosen.artifacts == {
        name: f"id of {name}" for name in ("adapter", "quantized_model", "merged_model")
    }
    assert (trained.base.id, trained.base.commit) == ("owner/base", "c" * 40)
    assert trained.describe(trained.config) == (
        "the merged model of finetune-1, by transformers, batch size auto"
    )


@pytest.mark.parametrize(
    ("missing", "problem"),
    [("adapter", "has no adapter"), ("merged_model", "has no merged_model")],
)
def test_a_run_that_did_not_come_far_enough(run_folder: Path, missing: str, problem: str) -> None:
    """It is told what it lacks."""
    summary: Any = json.loads((run_folder / "summary.json").read_text())
    del summary["artifacts"][missing]
    (run_folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=problem):
        model_of_run(run_folder)


def test_no_run(tmp_path: Path) -> None:
    """Nothing was trained yet."""
    with pytest.raises(UserError, match="there is no finished run at"):
        model_of_run(tmp_path / "latest")
