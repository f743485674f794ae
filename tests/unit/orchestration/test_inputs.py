"""What a config stands for today, and whether this machine can do it."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestration.inputs import GIB, check_disk, disk_needed, resolve_inputs
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import UserError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def config(config_values: dict[str, Any]) -> FinetuneConfig:
    return FinetuneConfig.model_validate(config_values)


def test_inputs_follow_catalog_and_model(
    config: FinetuneConfig, model_folder: Path, make_catalog: Callable[..., Path]
) -> None:
    """Each of the two has a version of its own."""
    first = resolve_inputs(config)
    (make_catalog() / "notes.txt").write_text("new")
    second = resolve_inputs(config)
    assert second.catalog_version != first.catalog_version
    assert second.base == first.base
    (model_folder / "config.json").write_text("[]")
    third = resolve_inputs(config)
    assert third.catalog_version == second.catalog_version
    assert third.base != second.base


def test_disk_needed_grows_with_the_model(config: FinetuneConfig, model_folder: Path) -> None:
    """A 4-bit and a merged copy of the base model; the merged one only if it is made."""
    before = disk_needed(config)
    with (model_folder / "model.safetensors").open("wb") as file:
        file.truncate(GIB)  # a sparse file: no disk is filled
    assert disk_needed(config) - before == pytest.approx(1.4 * GIB, rel=0.01)
    unmerged = config.model_copy(
        update={"merge": config.merge.model_copy(update={"enabled": False})}
    )
    assert disk_needed(unmerged) - before == pytest.approx(0.4 * GIB, rel=0.01)


def test_full_disk(config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little disk is told with both sizes, also for a folder that is not there yet."""
    folder = tmp_path / "not" / "yet"
    asked = []

    def full(path: Path) -> Usage:
        asked.append(path)
        return Usage(GIB, GIB, int(0.1 * GIB))

    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(UserError) as caught:
        check_disk(folder, disk_needed(config))
    assert f"need about 0.2 GiB, but only 0.1 GiB are free at {folder}" in str(caught.value)
    assert "--stack" in str(caught.value)
    assert asked == [tmp_path]


def test_enough_disk(config: FinetuneConfig, tmp_path: Path) -> None:
    """A machine that can do it is no error."""
    check_disk(tmp_path, disk_needed(config))
