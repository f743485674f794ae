"""Only whole checkpoints of the very same training are gone on from."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import Demo
from vlmtune.config.model import ModelConfig
from vlmtune.models.base_model import BaseModelRef
from vlmtune.training.checkpoints import (
    COMPLETE,
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
        mark_complete(checkpoint)
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


@pytest.fixture(scope="module")
def straight(
    demo_rows: Callable[[Path], Demo], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Demo, Any, Any]:
    """A small demo, a plan that keeps two checkpoints of three steps, and the adapter it made."""
    demo = demo_rows(tmp_path_factory.mktemp("straight"))
    demo.train, demo.held_out = demo.train.select(range(12)), demo.held_out.select(range(2))
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    plan = demo.plan(training={**saving, "max_steps": 3, "gradient_accumulation_steps": 1})
    return demo, plan, demo.adapter(plan)


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Cut the last byte off."""
    os.truncate(path, path.stat().st_size - 1)


def test_every_damaged_file_of_a_checkpoint_is_noticed(
    straight: tuple[Demo, Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Flipped, cut or gone: the warning names it, and the checkpoint before is taken."""
    folder = straight[1].folder
    last = folder / "checkpoint-3"
    names = [path.relative_to(last) for path in last.rglob("*") if path.is_file()]
    damages: list[Callable[[Path], None]] = [flip, truncate, Path.unlink]
    noticed = 0
    for damage in damages:
        for name in names:
            copy = tmp_path / f"{damage.__name__}-{name}"
            for step in ("2", "3"):
                shutil.copytree(folder / f"checkpoint-{step}", copy / f"checkpoint-{step}")
            damage(copy / "checkpoint-3" / name)
            caplog.clear()
            assert last_complete_checkpoint(copy) == copy / "checkpoint-2", (damage, name)
            assert not (copy / "checkpoint-3").exists()
            # Without its marker, it is one that a kill cut short.
            assert (damage is Path.unlink and name.name == COMPLETE) or str(name) in caplog.text
            noticed += 1
    assert {"optimizer.pt", "adapter_model.safetensors", COMPLETE} <= {each.name for each in names}
    print(f"{noticed} damaged files of {len(names)} kinds noticed")


def test_resuming_before_a_damaged_checkpoint_ends_in_the_same_bits(
    straight: tuple[Demo, Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the checkpoint before; with none left and damaged rows, from the beginning."""
    demo, plan, expected = straight
    shutil.copytree(plan.folder, tmp_path / "again")
    again = demo.plan(training=plan.training, folder=tmp_path / "again")
    truncate(again.folder / "checkpoint-3" / "optimizer.pt")
    adapter = demo.adapter(again)
    assert adapter.record.resumed_from == 2 and adapter.content_hash == expected.content_hash
    assert "optimizer.pt" in caplog.text
    flip(again.folder / "checkpoint-2" / "adapter_model.safetensors")
    (again.folder / "checkpoint-3" / "rng_state.pth").unlink()
    flip(again.folder / "train" / "rows.arrow")
    truncate(again.folder / "held_out" / "rows.arrow")
    adapter = demo.adapter(again)
    assert adapter.record.resumed_from is None and adapter.content_hash == expected.content_hash
    assert caplog.text.count("rows.arrow") == 2


def test_all_of_a_checkpoint_is_on_disk_before_its_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file and folder; then the marker, before and after it gets its name."""
    checkpoint = make_checkpoint(tmp_path, 5, complete=False)
    (checkpoint / "part").mkdir()
    (checkpoint / "part" / "weights").write_text("weights")
    synced, fsync = [], os.fsync

    def watched(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.append((path.relative_to(tmp_path).as_posix(), (checkpoint / COMPLETE).exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    mark_complete(checkpoint)
    files = ["optimizer.pt", "part", "part/weights"]
    before = {".", "checkpoint-5", *(f"checkpoint-5/{name}" for name in files)}
    assert {name for name, marked in synced[:-2] if not marked} == before
    assert synced[-2:] == [(f"checkpoint-5/.{COMPLETE}.tmp", False), ("checkpoint-5", True)]
