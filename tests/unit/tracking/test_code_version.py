"""An edit changes the version of just the steps that use what was edited."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

STEPS = (
    "load_dataset",
    "format_messages",
    "load_quantized_model",
    "train_qlora",
    "evaluate_generations",
    "merge_adapter",
    "push_to_hub",
)
VERSIONS = (
    "import json, sys\n"
    "from vlmtune.tracking.code_version import code_version\n"
    "print(json.dumps({step: code_version(f'steps.{step}') for step in sys.argv[1:]}))"
)
Changed = Callable[[str, str], set[str]]


@pytest.fixture
def changed_steps(
    tmp_path: Path, root: Path, run_python: Callable[..., "subprocess.CompletedProcess[str]"]
) -> Changed:
    """Append to a file of a copy of this project; returns the steps whose version changes."""
    copy = tmp_path / "copy"
    for package in ("vlmtune", "steps", "materializers", "orchestration", "pipelines"):
        shutil.copytree(
            root / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )

    def versions() -> dict[str, str]:
        done = run_python("-c", VERSIONS, *STEPS, cwd=copy)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def changed(path: str, addition: str) -> set[str]:
        before = versions()
        assert set(map(len, before.values())) == {64}
        with (copy / path).open("a", encoding="utf-8") as file:
            file.write(addition)
        after = versions()
        return {step for step in STEPS if after[step] != before[step]}

    return changed


COMMENT = "\n# edited\n"
USERS_OF_THE_MODEL = {
    "load_quantized_model",
    "train_qlora",
    "evaluate_generations",
    "merge_adapter",
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "vlmtune/evaluation/templates/report.html.j2",
            {"evaluate_generations", "merge_adapter"},
        ),
        ("vlmtune/tracking/findings.py", {"evaluate_generations", "merge_adapter"}),
        ("vlmtune/evaluation/gate.py", {"evaluate_generations", "merge_adapter", "push_to_hub"}),
        ("vlmtune/publishing/templates/model_card.md.j2", {"push_to_hub"}),
        ("vlmtune/models/quantized.py", USERS_OF_THE_MODEL),
        ("vlmtune/models/processor.py", {"load_dataset", *USERS_OF_THE_MODEL}),
        ("vlmtune/catalog/split.py", {"load_dataset"}),
        ("vlmtune/publishing/bundle.py", {"push_to_hub"}),
        ("steps/merge_adapter.py", {"merge_adapter"}),
        ("vlmtune/training/trainer.py", {"train_qlora"}),
        ("vlmtune/config/loading.py", set()),
        ("orchestration/console.py", set()),
    ],
)
def test_edit_changes_its_users(changed_steps: Changed, path: str, expected: set[str]) -> None:
    """A template, a shared module, a step, a lazily imported module, and unrelated modules."""
    assert changed_steps(path, COMMENT) == expected


def test_new_library_version_changes_its_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that never imports bitsandbytes' users is untouched by a new version of it."""
    import importlib.metadata

    from vlmtune.tracking.code_version import code_version

    before = {step: code_version(f"steps.{step}") for step in STEPS}
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: "999" if name == "bitsandbytes" else real(name),
    )
    changed = {step for step in STEPS if code_version(f"steps.{step}") != before[step]}
    assert {"load_quantized_model", "train_qlora"} <= changed
    assert "format_messages" not in changed
