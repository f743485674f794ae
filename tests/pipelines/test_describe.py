"""The demo's tuned model describes a catalog that has no descriptions."""

import csv
import json
import os
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow.parquet import read_table

DESCRIBE = ("--pipeline", "describe", "--config", "new.yaml")
NEW_CONFIG = """
data:
  source: new
  columns: {image: file_name, name: Product Name, category: Category}
"""
ROWS, BROKEN = 60, 7


@pytest.fixture(scope="module")
def new(checkout: Any, demo: dict[str, Any]) -> dict[str, Any]:
    """The demo's first products without their descriptions, one of them without its picture,
    described with the model that was trained on the demo; returns the run's summary."""
    folder = checkout.folder / "new"
    shutil.copytree(checkout.folder / "demo" / "catalog" / "images", folder / "images")
    with (checkout.folder / "demo" / "catalog" / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[:ROWS]
    rows[BROKEN]["file_name"] = "images/nowhere.jpg"
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.DictWriter(
            file, ["file_name", "Product Name", "Category"], extrasaction="ignore"
        )
        table.writeheader()
        table.writerows(rows)
    (checkout.folder / "new.yaml").write_text(NEW_CONFIG)
    done = checkout.run(*DESCRIBE, "--model-run", f"runs/{demo['run_name']}")
    assert f"{ROWS - 1} rows described by the merged model of {demo['run_name']}" in done.stdout
    return summary_of(checkout)


def summary_of(checkout: Any) -> dict[str, Any]:
    """The summary of the newest describing run."""
    path = checkout.folder / "runs" / "latest-describe" / "summary.json"
    return json.loads(path.read_text())


def journal_of(checkout: Any) -> Path:
    """The only file of finished rows."""
    (path,) = (checkout.folder / ".vlmtune" / "describing").glob("*/rows.jsonl")
    return path


def test_it_writes_in_the_house_style(checkout: Any, new: dict[str, Any]) -> None:
    """Close to what the shop's own writers wrote, which it was not shown."""
    folder = checkout.folder / "runs" / new["run_name"]
    written = [
        json.loads(line) for line in (folder / "descriptions.jsonl").read_text().splitlines()
    ]
    with (checkout.folder / "demo" / "catalog" / "metadata.csv").open(newline="") as file:
        own = {row["Product Name"]: row["description"] for row in csv.DictReader(file)}
    assert len(written) == ROWS - 1
    same = sum(row["description"] == own[row["name"]] for row in written)
    assert same / len(written) > 0.7
    assert sum(bool(row["flags"]) for row in written) == new["descriptions"]["flagged_rows"] < 10


def test_the_run_folder_is_complete(checkout: Any, new: dict[str, Any]) -> None:
    """Three tables that agree, a page, the ledger and the quarantined row."""
    folder = checkout.folder / "runs" / new["run_name"]
    rows = read_table(folder / "descriptions.parquet").to_pylist()
    assert rows == [
        json.loads(line) for line in (folder / "descriptions.jsonl").read_text().splitlines()
    ]
    with (folder / "descriptions.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["row_id"] for row in table] == [row["row_id"] for row in rows]
    page = (folder / "descriptions.html").read_text()
    assert page.count("data:image/jpeg") == ROWS - 1
    assert "nowhere.jpg" in page
    assert (folder / "quarantine" / "metadata.jsonl").is_file()
    assert (folder / "ledger.csv").is_file()
    config = (folder / "config.resolved.yaml").read_text()
    assert "described: false" in config and "##PRODUCT NAME##" in config
    assert set(new["steps"]) == {"load_dataset", "describe_catalog"}
    assert new["catalog"]["rows"]["quarantined"] == new["descriptions"]["quarantined_rows"] == 1
    assert new["descriptions"]["rows_per_second"] > 0


def test_the_run_is_tracked(checkout: Any, new: dict[str, Any]) -> None:
    """How many rows, how fast, how many to look at, and the page."""
    database = next((checkout.home / "zenml").rglob("mlflow.db"))
    found = sqlite3.connect(database).execute(
        "select key, value from metrics where run_uuid = ?", (new["mlflow_run_id"],)
    )
    metrics = dict(found.fetchall())
    assert metrics["describe/rows"] == ROWS - 1
    assert metrics["describe/rows_per_second"] > 0
    assert "describe/flagged_rows" in metrics
    pages = list(database.parent.rglob("descriptions.html"))
    assert any(new["mlflow_run_id"] in str(page) for page in pages)


def test_a_second_run_describes_nothing_anew(checkout: Any, new: dict[str, Any]) -> None:
    """It comes from the cache; without the cache, from the rows that were finished."""
    written = journal_of(checkout).read_bytes()
    texts = (checkout.folder / "runs" / new["run_name"] / "descriptions.csv").read_bytes()
    checkout.run(*DESCRIBE)
    again = summary_of(checkout)
    assert all(step["cached"] for step in again["steps"].values())
    checkout.run(*DESCRIBE, "--no-cache")
    uncached = summary_of(checkout)
    assert not any(step["cached"] for step in uncached["steps"].values())
    assert uncached["descriptions"]["new_rows"] == 0
    for summary in (again, uncached):
        folder = checkout.folder / "runs" / summary["run_name"]
        assert (folder / "descriptions.csv").read_bytes() == texts
    assert journal_of(checkout).read_bytes() == written


@pytest.mark.slow
def test_a_killed_run_goes_on(checkout: Any, new: dict[str, Any]) -> None:
    """Rows that were finished before a `kill -9` are not written again."""
    work = checkout.folder / ".killed"
    arguments = (*DESCRIBE, "--no-cache", "--set=output.work_dir=.killed")
    arguments = (*arguments, "--set=describe.batch_size=1", "--set=generation.max_new_tokens=40")
    process = checkout.start(*arguments)
    deadline = time.monotonic() + 300
    while not any(path.stat().st_size for path in work.glob("describing/*/rows.jsonl")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (journal,) = work.glob("describing/*/rows.jsonl")
    before = journal.read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    done = whole.count(b"\n")
    assert 0 < done < ROWS - 1
    checkout.run(*arguments)
    assert summary_of(checkout)["descriptions"]["new_rows"] == ROWS - 1 - done
    assert journal.read_bytes().startswith(whole)
    assert journal.read_bytes().count(b"\n") == ROWS - 1


def test_the_plan_of_a_dry_run(checkout: Any, new: dict[str, Any]) -> None:
    """Which model writes, and nothing is made."""
    before = len(list((checkout.folder / "runs").iterdir()))
    done = checkout.run(*DESCRIBE, "--dry-run")
    assert "describe_catalog" in done.stdout and "merged model of finetune-" in done.stdout
    assert len(list((checkout.folder / "runs").iterdir())) == before


def test_a_field_of_the_prompt_that_the_catalog_lacks(checkout: Any, new: dict[str, Any]) -> None:
    """One clear line."""
    columns = "--set=data.columns={image: file_name, name: Product Name}"
    done = checkout.run(*DESCRIBE, columns, code=2)
    assert "prompt.template names the field {category}, which data.columns lacks" in done.stderr
