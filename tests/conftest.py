"""Small catalogs, base-model folders and configs that the tests make for themselves."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from vlmtune.config.data import DataConfig
from vlmtune.environment import drop_inherited_variables

drop_inherited_variables()
SHELL = dict(os.environ)  # before MLflow and the Trainer leave variables of theirs
ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "image": "file_name",
    "name": "Product Name",
    "category": "Category",
    "description": "description",
}
Row = dict[str, Any]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture
def make_rows() -> Callable[[int], list[Row]]:
    """Rows as in the demo's metadata.csv, each with a picture of its own."""

    def make(count: int) -> list[Row]:
        return [
            {
                "file_name": f"images/{number}.png",
                "Product Name": f"Mug {number}",
                "Category": "Kitchen",
                "description": f"Mug {number} is a mug.",
            }
            for number in range(1, count + 1)
        ]

    return make


@pytest.fixture
def make_catalog(tmp_path: Path, make_rows: Callable[[int], list[Row]]) -> Callable[..., Path]:
    """A catalog folder: pictures by PIL, and metadata as csv, jsonl or parquet.

    A picture is made for each `file_name` (or `pic`) below `images/` that is not there yet;
    pictures of different names differ.
    """

    def make(
        rows: list[Row] | None = None, kind: str = "csv", name: str = "catalog", **options: Any
    ) -> Path:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True, exist_ok=True)
        rows = make_rows(3) if rows is None else rows
        for row in rows:
            picture = str(row.get("file_name") or row.get("pic") or "")
            path = folder / picture
            if picture.startswith("images/") and not path.exists():
                colour = sum(map(ord, picture)) * 7919 % 2**24
                rgb = (colour >> 16, colour >> 8 & 255, colour & 255)
                Image.new("RGB", (24, 16), rgb).save(path)
        _write_metadata(folder / f"metadata.{kind}", rows, **options)
        return folder

    return make


def _write_metadata(path: Path, rows: list[Row], encoding: str = "utf-8") -> None:
    if path.suffix == ".csv":
        with path.open("w", encoding=encoding, newline="") as file:
            names = dict.fromkeys(name for row in rows for name in row)
            table = csv.DictWriter(file, list(names))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding=encoding)
    else:
        import pandas

        pandas.DataFrame(rows).to_parquet(path)


@pytest.fixture
def make_data() -> Callable[..., DataConfig]:
    """The `data` section for a catalog folder of `make_catalog`."""

    def make(folder: Path | str, **changes: Any) -> DataConfig:
        return DataConfig(**{"source": str(folder), "columns": COLUMNS} | changes)

    return make


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder with the parts of a base model, none of which can be loaded."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "processor_config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def config_values(model_folder: Path, make_catalog: Callable[..., Path]) -> dict[str, Any]:
    """The values of a small, complete config whose catalog and base model are there."""
    return {
        "data": {
            "source": str(make_catalog()),
            "columns": dict(COLUMNS),
            "held_out": {"fraction": 0.5},
        },
        "prompt": {"template": "Describe {name} of {category}."},
        "model": {"id": str(model_folder), "device": "cpu"},
        "quantization": {"load_in_4bit": True},
        "lora": {"r": 4},
        "training": {"max_steps": 1},
        "output": {
            "runs_dir": str(model_folder.parent / "runs"),
            "work_dir": str(model_folder.parent / "work"),
        },
    }


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Write a config, as values or as YAML text; returns the file."""

    def write(content: dict[str, Any] | str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def run_python(root: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a Python process in the repository, in the environment that the tests were started in
    but for `env` (None removes a variable)."""

    def run(
        *arguments: str, cwd: Path = root, env: dict[str, str | None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        merged = SHELL | {"PYTHONPATH": str(cwd)} | (env or {})
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env={name: value for name, value in merged.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
