"""Only whole checkpoints of the very same training are gone on from."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlmtune.config.model import ModelConfig
from vlmtune.models.base_model import BaseModelRef
from vlmtune.training.checkpoints import (
    FINISHED,
    last_complete_checkpoint,
    locked,
    mark_complete,
    mark_finished,
    remove_finished,
    training_fingerprint,
)


def make_checkpoint(folder: Path, step: int, complete: bool = True) -> Path:
    """A checkpoint with a file in it."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.pt").write_text("state")
    if complete:
        mark_complete(checkpoint, step)
    return checkpoint


def test_last_by_number(tmp_path: Path) -> None:
    """Step 10 is after step 9, whatever their names sort like."""
    for step in (9, 10, 2):
        make_checkpoint(tmp_path, step)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_half_written_ones_are_removed(tmp_path: Path) -> None:
    """A newer checkpoint that a kill cut short is removed; the whole one before it is taken."""
    whole = make_checkpoint(tmp_path, 50)
    half = make_checkpoint(tmp_path, 100, complete=False)
    (tmp_path / "logs").mkdir()
    assert last_complete_checkpoint(tmp_path) == whole
    assert not half.exists()
    assert (whole / "optimizer.pt").is_file()
    assert (tmp_path / "logs").is_dir()


def test_no_checkpoint(tmp_path: Path) -> None:
    """A fresh folder, and one with nothing but a half-written checkpoint, start anew."""
    assert last_complete_checkpoint(tmp_path / "none") is None
    make_checkpoint(tmp_path, 5, complete=False)
    assert last_complete_checkpoint(tmp_path) is None


PARTS = {
    "rows": "a" * 64,
    "pictures": "b" * 64,
    "base": BaseModelRef(id="shop/base", commit="c" * 40),
    "quantization": {"load_in_4bit": True},
    "model": ModelConfig(id="shop/base"),
    "options": (42, {"r": 8}, {"learning_rate": 1e-4, "max_steps": 10}),
    "code": "d" * 64,
}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("rows", "e" * 64),
        ("pictures", "e" * 64),
        ("base", BaseModelRef(id="shop/base", commit="f" * 40)),
        ("quantization", {"load_in_4bit": False}),
        ("model", ModelConfig(id="shop/base", max_pixels=1000)),
        ("options", (43, {"r": 8}, {"learning_rate": 1e-4, "max_steps": 10})),
        ("options", (42, {"r": 9}, {"learning_rate": 1e-4, "max_steps": 10})),
        ("options", (42, {"r": 8}, {"learning_rate": 2e-4, "max_steps": 10})),
        ("options", (42, {"r": 8}, {"learning_rate": 1e-4, "max_steps": 10.0})),
        ("code", "e" * 64),
    ],
)
def test_fingerprint_differs_for_each_part(part: str, value: object) -> None:
    """Any other part is another training."""
    assert training_fingerprint(PARTS | {part: value}) != training_fingerprint(PARTS)


def test_fingerprint_is_the_same_in_another_process() -> None:
    """It depends on values, not on their order or on this process."""
    parts = {"options": {"b": 1, "a": [2, 3]}, "seed": 1}
    code = (
        "from vlmtune.training.checkpoints import training_fingerprint as f\n"
        "print(f({'seed': 1, 'options': {'a': [2, 3], 'b': 1}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == training_fingerprint(parts)
    assert len(training_fingerprint(parts)) == 16


def test_second_process_waits(tmp_path: Path, root: Path) -> None:
    """A second run of the same training gets the folder only when the first one is done."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom vlmtune.training.checkpoints import locked\n"
        "print('asking', flush=True)\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)"
    )
    folder = tmp_path / "training"
    with locked(folder):
        second = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], cwd=root, stdout=subprocess.PIPE, text=True
        )
        assert second.stdout is not None
        assert second.stdout.readline() == "asking\n"
        time.sleep(0.5)
        assert second.poll() is None
    assert second.communicate(timeout=30)[0] == "held\n"
    assert second.returncode == 0


def test_finished_trainings_are_removed(tmp_path: Path) -> None:
    """Those that this run finished and nobody uses go; a killed training keeps its checkpoints,
    and so does another run, which may be about to store its adapter."""
    for name in ("finished", "killed", "in-use", "other"):
        make_checkpoint(tmp_path / name, 5)
    mark_finished(tmp_path / "finished", "this-run")
    mark_finished(tmp_path / "in-use", "this-run")
    mark_finished(tmp_path / "other", "other-run")
    with locked(tmp_path / "in-use"):
        remove_finished(tmp_path, "this-run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in-use", "killed", "other"]
    remove_finished(tmp_path, "this-run")
    assert last_complete_checkpoint(tmp_path / "killed") is not None
    assert not (tmp_path / "in-use").exists()
    assert last_complete_checkpoint(tmp_path / "other") is not None


def test_a_marker_that_another_run_is_writing(tmp_path: Path) -> None:
    """It is half there: this run passes it by and leaves its folder alone."""
    make_checkpoint(tmp_path / "other", 5)
    (tmp_path / "other" / FINISHED).write_text("")
    remove_finished(tmp_path, "this-run")
    assert last_complete_checkpoint(tmp_path / "other") is not None
