"""`--pipeline check`: the ledger that it leaves, its exit code, and what a retrain carries on."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.pipelines.conftest import SMALL

ROOT = Path(__file__).resolve().parents[2]
CATALOGS = ROOT.parent / "shared" / "catalogs"
COLUMNS = (
    "--set=data.columns={image: file_name, name: Product Name, category: Category, "
    "description: description}"
)
CHECK = ("--pipeline", "check", "--set=data.held_out={fraction: 0.1, by: name}")
CHECK = (*CHECK, "--set=data.contract={}", COLUMNS, "--set=evaluation.copied_fields=[]")

needs_catalogs = pytest.mark.skipif(not CATALOGS.is_dir(), reason=f"{CATALOGS} is not here")


def ledger_of(checkout: Any, folder: str = "latest-check") -> list[dict[str, str]]:
    """The lines of the newest check's ledger."""
    path = checkout.folder / "runs" / folder / "ledger.csv"
    return list(csv.DictReader(path.open(encoding="utf-8-sig")))


def summary_of(checkout: Any) -> dict[str, Any]:
    """The summary of the newest check."""
    path = checkout.folder / "runs" / "latest-check" / "summary.json"
    return json.loads(path.read_text())


@pytest.mark.catalogs
@needs_catalogs
def test_eshop_is_kept_whole(checkout: Any) -> None:
    """All rows are kept; names that several products share are reported."""
    checkout.run(*CHECK, f"--set=data.source={CATALOGS / 'eshop'}")
    rows = summary_of(checkout)["catalog"]["rows"]
    assert (rows["rows_read"], rows["kept"], rows["quarantined"]) == (101, 101, 0)
    assert rows["train"] + rows["held_out"] == 101
    page = (checkout.folder / "runs" / "latest-check" / "data_report.html").read_text()
    names = [line["label"] for line in ledger_of(checkout)]
    shared = {name for name in names if names.count(name) > 1}
    assert len(shared) == 3
    for name in shared:
        assert name in page
    assert "3 values of <bdi>name</bdi> are shared by 6 rows" in page


@pytest.mark.catalogs
@needs_catalogs
def test_spree_stops_unless_its_gaps_are_allowed(checkout: Any) -> None:
    """A check fails above max_quarantine, and leaves ledger, pages and originals all the same."""
    source = f"--set=data.source={CATALOGS / 'spree'}"
    failed = checkout.run(*CHECK, source, code=2)
    assert "174 of 211 rows are quarantined (82.5%" in failed.stderr
    folder = checkout.folder / "runs" / "latest-check"
    assert summary_of(checkout)["status"] == "failed"
    lines = ledger_of(checkout)
    decisions = [line["decision"] for line in lines]
    assert (len(lines), decisions.count("kept"), decisions.count("quarantined")) == (211, 37, 174)
    assert sum("missing_text" in line["codes"] for line in lines) == 174
    assert sum("missing_picture" in line["codes"] for line in lines) == 87
    assert (folder / "data_report.html").is_file()
    assert (folder / "ledger.html").is_file()
    originals = (folder / "quarantine" / "metadata.jsonl").read_text().splitlines()
    assert len(originals) == 174
    assert json.loads(originals[0])["sku"]
    checkout.run(*CHECK, source, "--set=data.max_quarantine=0.82", code=2)
    checkout.run(*CHECK, source, "--set=data.max_quarantine=0.83")
    assert summary_of(checkout)["status"] == "completed"


@pytest.mark.catalogs
@needs_catalogs
def test_jpetstore_is_cleaned_and_its_shared_picture_grouped(checkout: Any) -> None:
    """HTML leaves the descriptions, and the products that share a GIF are in one group."""
    checkout.run(*CHECK, f"--set=data.source={CATALOGS / 'jpetstore'}")
    lines = ledger_of(checkout)
    assert [line["decision"] for line in lines] == ["repaired"] * 16
    assert all("html_removed" in line["codes"] for line in lines)
    by_picture: dict[str, set[str]] = {}
    for line in lines:
        by_picture.setdefault(line["sha256"], set()).add(line["group"])
    assert sorted(map(len, by_picture.values())) == [1] * 15


def test_a_grown_catalog_keeps_its_split_and_decodes_only_what_is_new(checkout: Any) -> None:
    """A finetune run counts as promoted: the next one carries its split on."""
    catalog = checkout.folder / "growing"
    shutil.copytree(checkout.folder / "demo" / "catalog", catalog)
    run = ("--pipeline", "finetune", *SMALL, "--set=data.source=growing")
    run = (*run, "--set=output.work_dir=.growing")  # where no picture is known yet
    first = [option for option in run if "max_rows=80" not in option] + ["--set=data.max_rows=80"]
    checkout.run(*first)
    before = {line["row_id"]: line["side"] for line in ledger_of(checkout, "latest")}
    assert len(before) == 80
    grown = [*first[:-1], "--set=data.max_rows=88"]
    checkout.run(*grown)
    summary = checkout.summary()
    after = {line["row_id"]: line["side"] for line in ledger_of(checkout, "latest")}
    assert len(after) == 88
    assert {row_id: after[row_id] for row_id in before} == before
    assert summary["catalog"]["pictures_decoded"] == 8
    assert summary["catalog"]["pictures_known"] == 80
    assert summary["catalog"]["previous_ledger"]
    page = (checkout.folder / "runs" / "latest" / "data_report.html").read_text()
    assert '<h2>Added</h2><p class="figure">8</p>' in page
    checkout.run(*grown)  # unchanged: the ledger it was carried on from is still the same one
    assert checkout.executed() == set()


def test_check_of_a_catalog_with_a_broken_row(checkout: Any) -> None:
    """Broken rows are quarantined with their pictures, a copy counts once, 12 rows of one text are
    12 groups; nothing is trained."""
    catalog = checkout.folder / "small"
    (catalog / "images").mkdir(parents=True)
    rows = []
    for number in range(40):
        Image.effect_noise((64, 64), 90).save(catalog / "images" / f"{number}.png")
        rows.append([f"images/{number}.png", f"Item {number}", "Kitchen", f"A fine item {number}."])
    rows[7][3] = " "
    rows[9][0] = "../../etc/passwd"
    for row in rows[20:32]:
        row[3] = "Ask for the price."
    rows.append(rows[0])
    with (catalog / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["file_name", "Product Name", "Category", "description"], *rows]
        )
    done = checkout.run(*CHECK, "--set=data.source=small", "--set=data.max_quarantine=0.1")
    assert "41 rows read: 38 kept, 0 repaired, 2 quarantined, 1 duplicate" in done.stdout
    said = "the description 'Ask for the price.' (12 rows, 12 products) says little about any one"
    assert said in " ".join((done.stdout + done.stderr).split())
    counts = summary_of(checkout)["catalog"]["rows"]
    held_out = [line["shared_with_train"] for line in ledger_of(checkout) if line["side"]]
    assert counts["held_out_sharing_description"] == held_out.count("description")
    assert (
        f"of the held-out rows {held_out.count('description')} share a description and 0 an image "
        "with rows to train on"
    ) in done.stdout
    assert "Warning: gate.min_groups: the catalog has" in done.stdout
    assert "its 38 groups are too few" in done.stdout
    assert list(summary_of(checkout)["warnings"]) == ["gate.min_groups"]
    steps = summary_of(checkout)["steps"]
    assert set(steps) == {"load_dataset", "report_catalog", "format_messages"}
    codes = {int(line["line"]): line["codes"] for line in ledger_of(checkout)}
    assert (codes[8], codes[10]) == ("missing_text", "picture_outside_folder")
    quarantine = checkout.folder / "runs" / "latest-check" / "quarantine"
    kept = [json.loads(line) for line in (quarantine / "metadata.jsonl").read_text().splitlines()]
    assert [row["_line"] for row in kept] == [8, 10]
    assert (quarantine / kept[0]["_pictures"][0]).read_bytes() == (
        catalog / "images" / "7.png"
    ).read_bytes()
    assert kept[1]["file_name"] == "../../etc/passwd"
