"""What the merging step does with a merge's outcome; the merge itself is tested by itself."""

import gc
import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlmtune.config.model import ModelConfig
from vlmtune.config.publishing import MergeConfig
from vlmtune.models.base_model import BaseModelRef
from vlmtune.models.merge_record import MergeRecord, MergeResult

Merge = Callable[..., MergeResult]


def record(status: str, reason: str = "") -> MergeRecord:
    """Of a merge into some base."""
    base = BaseModelRef(id="owner/model", commit="0" * 40)
    facts = {"status": status, "reason": reason, "base": base, "adapter_hash": "1" * 64}
    return MergeRecord.model_validate(facts)


@pytest.fixture
def merging_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Merge], MergeResult]:
    """Runs the step with a given merge, outside of any pipeline."""
    module = importlib.import_module("steps.merge_adapter")
    monkeypatch.setattr(module, "run_context", lambda: SimpleNamespace(work_dir=tmp_path))
    monkeypatch.setattr(module, "with_pictures", lambda rows, catalog: rows)

    def run(merge: Merge) -> MergeResult:
        monkeypatch.setattr(module, "merge", merge)
        examples: Any = SimpleNamespace(held_out=["row"])
        model, merging = ModelConfig(id="owner/model"), MergeConfig()
        return module.merge_adapter.entrypoint(None, examples, None, model, merging)

    return run


def test_the_folder_goes_with_the_result(
    merging_step: Callable[[Merge], MergeResult], tmp_path: Path
) -> None:
    """It lies in the work folder until the result is stored and let go."""

    def write(adapter: Any, model: Any, enabled: bool, rows: Any, folder: Path) -> MergeResult:
        assert enabled and rows == ["row"]
        (folder / "model.safetensors").write_text("weights")
        return MergeResult(record("merged"), folder)

    result = merging_step(write)
    folder = result.folder
    assert folder is not None and (folder / "model.safetensors").exists()
    assert folder.parent == tmp_path / "merging"
    del result
    gc.collect()
    assert not folder.exists()


def test_a_failed_merge_fails_the_step(merging_step: Callable[[Merge], MergeResult]) -> None:
    """With the check that was not met."""
    failed = MergeResult(record("failed", "divergence: wanted this, found that"))
    with pytest.raises(RuntimeError, match="is not kept: divergence: wanted this, found that"):
        merging_step(lambda *_: failed)


def test_a_skipped_merge_is_passed_on(merging_step: Callable[[Merge], MergeResult]) -> None:
    """The run goes on without a merged model."""
    skipped = MergeResult(record("skipped", "merge.enabled is false"))
    assert merging_step(lambda *_: skipped) == skipped
