"""The ledger as a table for people, and the two questions that may stop a run."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmtune.catalog.ledger import (
    FLAT_COLUMNS,
    Decision,
    LedgerLine,
    PictureLine,
    Reason,
    RowLedger,
    SharedValue,
    ledger_features,
)
from vlmtune.catalog.loading import load_catalog
from vlmtune.errors import UserError

LINE = LedgerLine(1, "shop/metadata.csv row 1", "0" * 16, "Mug", Decision.KEPT)
BAD = replace(LINE, decision=Decision.QUARANTINED, reasons=[Reason("missing_text", "it is empty")])


def ledger_of(lines: list[LedgerLine]) -> RowLedger:
    """A ledger with these lines."""
    from datasets import Dataset

    records = [line.record() for line in lines]
    return RowLedger(Dataset.from_list(records, features=ledger_features()), Path("none"))


def read_csv(path: Path) -> list[dict[str, str]]:
    """A table as a spreadsheet has it."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


# As a table -----------------------------------------------------------------------------------


def test_one_line_a_row(tmp_path: Path) -> None:
    """Several pictures and reasons stand in one cell; Excel learns that it is UTF-8."""
    pictures = [
        PictureLine("a.png", "aa", "11", "c", 40, 30, 28, 28, 1),
        PictureLine("b.png", "bb", "22", "c", 80, 60, 56, 56, 4),
    ]
    told = [Reason("html_removed", "HTML,\nremoved"), Reason("html_removed", "again"), *BAD.reasons]
    lines = [replace(LINE, label="杯子 🫖", pictures=pictures, reasons=told), LINE, BAD]
    path = ledger_of(lines).write_csv(tmp_path / "ledger.csv")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    first, *others = read_csv(path)
    assert len(others) == 2
    assert list(first) == list(FLAT_COLUMNS)
    assert first["label"] == "杯子 🫖"
    assert (first["pictures"], first["size"]) == ("a.png b.png", "40x30 80x60")
    assert (first["resized"], first["picture_tokens"]) == ("28x28 56x56", "5")
    assert first["codes"] == "html_removed missing_text"
    assert first["reasons"] == "HTML,\nremoved; again; it is empty"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_is_a_formula(tmp_path: Path, start: str) -> None:
    """Names come from the catalog: none of them runs in the spreadsheet of who reads about it."""
    formula = f"{start}HYPERLINK(1)"
    line = replace(
        LINE,
        place=formula,
        label=formula,
        group=formula,
        pictures=[PictureLine(name=formula)],
        reasons=[Reason("x", formula)],
    )
    (row,) = read_csv(ledger_of([line]).write_csv(tmp_path / "ledger.csv"))
    for name in ("place", "label", "group", "pictures", "reasons"):
        assert row[name] == f"'{formula}", name


def test_table_of_a_real_ledger(
    make_catalog: Callable[..., Path],
    make_rows: Callable[[int], list[dict[str, Any]]],
    make_data: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """As many lines as the catalog has rows, each with its decision."""
    rows = make_rows(3)
    rows[1]["Product Name"] = '=cmd|" /C calc"!A0'
    rows[2]["description"] = ""
    _, ledger = load_catalog(make_data(make_catalog(rows)), "v")
    table = read_csv(ledger.write_csv(tmp_path / "ledger.csv"))
    assert [row["decision"] for row in table] == ["kept", "kept", "quarantined"]
    assert table[1]["label"].startswith("'=cmd")
    assert table[2]["side"] == ""


# Counts and questions -------------------------------------------------------------------------


def test_counts() -> None:
    """Rows by decision and side; a code counts once a row, the most frequent first."""
    twice = replace(BAD, reasons=[*BAD.reasons, Reason("a", "x"), Reason("missing_text", "y")])
    fixed = replace(LINE, decision=Decision.REPAIRED, reasons=[Reason("b", "z")], side="train")
    copy = replace(LINE, decision=Decision.DUPLICATE, copy_of="1" * 16)
    shared = replace(LINE, side="held_out", shared_with_train="description image")
    ledger = ledger_of([shared, BAD, twice, fixed, copy])
    assert ledger.counts == {
        "rows_read": 5,
        "kept": 1,
        "repaired": 1,
        "quarantined": 2,
        "duplicate": 1,
        "train": 1,
        "held_out": 1,
        "held_out_sharing_description": 1,
        "held_out_sharing_image": 1,
    }
    assert ledger.reason_counts == {"missing_text": 2, "a": 1, "b": 1}


def test_too_much_in_quarantine() -> None:
    """The message has the share, what is allowed, why, and the first rows; repairs do not count."""
    fixed = replace(LINE, decision=Decision.REPAIRED, reasons=[Reason("html_removed", "x")])
    ledger = ledger_of([LINE, BAD, fixed, LINE])
    ledger.require_acceptable(0.25)
    with pytest.raises(UserError) as caught:
        ledger.require_acceptable(0.2)
    assert caught.value.problem == (
        "1 of 4 rows are quarantined (25.0%, data.max_quarantine allows 20.0%): missing_text 1.\n"
        "  shop/metadata.csv row 1: it is empty\n"
    )
    assert "raise data.max_quarantine" in caught.value.mend


def test_nothing_left_is_never_acceptable() -> None:
    """Whatever share is allowed."""
    with pytest.raises(UserError, match="2 of 2 rows are quarantined"):
        ledger_of([BAD, BAD]).require_acceptable(1.0)


@pytest.mark.parametrize(
    ("side", "empty", "mend"), [("train", "held_out", "Raise"), ("held_out", "train", "Lower")]
)
def test_both_sides_need_rows(side: str, empty: str, mend: str) -> None:
    """The message says which side is empty, of how many groups, and which way to turn."""
    lines = [replace(LINE, side=side, group=group) for group in "aab"]
    ledger = ledger_of([*lines, BAD])
    with pytest.raises(UserError) as caught:
        ledger.require_both_sides(0.3)
    assert f"the {empty} side of the split would be empty" in caught.value.problem
    assert "2 groups of rows, and data.held_out.fraction is 0.3" in caught.value.problem
    assert caught.value.mend.startswith(f"{mend} data.held_out.fraction")
    assert "largest" not in caught.value.problem
    other = replace(LINE, side=empty, group="c")
    ledger_of([*lines, other]).require_both_sides(0.3)


def test_an_impossible_split_says_what_ties_the_rows() -> None:
    """Where all rows are one group another fraction is no help; what would be is said."""
    ties = [
        SharedValue("description", "One size.", "1" * 16, 30, 9, 0, ties=True),
        SharedValue("product", "Mug", "1" * 16, 20, 1, 0, ties=True),
        SharedValue("image", "logo.png", "1" * 16, 40, 12, 0, ties=False),
    ]
    ledger = ledger_of([replace(LINE, side="train", group="a")] * 40)
    with pytest.raises(UserError) as caught:
        replace(ledger, shared=ties).require_both_sides(0.3)
    assert caught.value.problem.endswith(
        "The largest has 40 rows, tied by the description 'One size.' (30 rows, 9 products), "
        "the product 'Mug' (20 rows, 1 product)."
    )
    assert "fraction" not in caught.value.mend
    assert "lower data.duplicates.max_sharing_products" in caught.value.mend
    assert "name fields in data.held_out.by" in caught.value.mend
