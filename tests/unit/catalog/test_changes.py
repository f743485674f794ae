"""Which rows came, went and changed, and whether the catalog as a whole has drifted."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from vlmtune.catalog.catalog import Catalog, catalog_features
from vlmtune.catalog.changes import CatalogChanges, compare_catalogs
from vlmtune.catalog.drift import Drift, Verdict, words_of
from vlmtune.catalog.ledger import (
    Decision,
    LedgerLine,
    PictureLine,
    RowLedger,
    ledger_features,
)
from vlmtune.config.data import DataConfig

Row = dict[str, Any]
DATA = DataConfig(
    source="shop",
    columns={"image": "i", "name": "n", "category": "c", "description": "d"},
    held_out={"by": "name"},
)
FIELDS = ["name", "category", "description"]


def row(name: str, **changes: Any) -> Row:
    """A row that can be trained on; its id comes from name, category and picture."""
    values = {
        "name": name,
        "category": "Kitchen",
        "description": f"{name} is a mug.",
        "picture": f"picture of {name}",
        "side": 600,
        "language": "en",
        "decision": Decision.KEPT,
    } | changes
    key = repr((values["name"], values["category"], values["picture"]))
    return {"row_id": hashlib.sha256(key.encode()).hexdigest()[:16]} | values


def line(number: int, values: Row) -> LedgerLine:
    """The row's line in the ledger."""
    texts = repr([values[name] for name in FIELDS])
    sha256 = hashlib.sha256(values["picture"].encode()).hexdigest()
    return LedgerLine(
        line=number,
        place=f"shop row {number}",
        row_id=values["row_id"],
        label=values["name"],
        decision=values["decision"],
        pictures=[PictureLine(sha256=sha256, width=values["side"], height=400)],
        text_hash=hashlib.sha256(texts.encode()).hexdigest()[:16],
        language=values["language"],
        characters=len(values["description"]),
    )


def catalog_of(rows: Sequence[Row], version: str = "v1") -> tuple[Catalog, RowLedger]:
    """A catalog with its ledger; its pictures would break if anybody decoded them."""
    kept = [each for each in rows if each["decision"].in_catalog]
    columns: dict[str, list[Any]] = {
        name: [each[name] for each in kept] for name in ["row_id", *FIELDS]
    }
    columns["images"] = [[{"bytes": b"no picture", "path": None}] for _ in kept]
    table = Dataset.from_dict(columns, features=catalog_features(FIELDS))
    lines = [line(number, each).record() for number, each in enumerate(rows, 1)]
    names = list(ledger_features())
    ledger = Dataset.from_dict(
        {name: [each[name] for each in lines] for name in names}, features=ledger_features()
    )
    return Catalog(table, "shop", version), RowLedger(lines=ledger, quarantine=Path("none"))


def compare(old: Sequence[Row], new: Sequence[Row], data: DataConfig = DATA) -> CatalogChanges:
    """The second list of rows against the first."""
    return compare_catalogs(*catalog_of(new, "v2"), *catalog_of(old, "v1"), data)


def drift(changes: CatalogChanges, what: str) -> Drift:
    """The drift of one property."""
    return next(each for each in changes.drift if each.what == what)


def shop(count: int, seed: int) -> list[Row]:
    """Rows at random: words come in bundles by category, as in real shops."""
    draw = random.Random(seed)
    bundles = {
        name: [f"{name}{number}" for number in range(15)]
        for name in ("mug", "lamp", "bag", "chair")
    }
    rows = []
    for number in range(count):
        category = draw.choice(list(bundles))
        words = [word for word in bundles[category] if draw.random() < 0.7]
        words += draw.choices(["fine", "old", "new", "small"], k=draw.randrange(1, 30))
        values = {"category": category, "description": " ".join(words)}
        sizes = {"side": draw.randrange(300, 1200), "language": draw.choice(["en", "en", "de"])}
        rows.append(row(f"{seed}-{number}", **values, **sizes))
    return rows


def test_equal_catalogs() -> None:
    """Nothing changed."""
    rows = shop(40, 1)
    changes = compare(rows, rows)
    assert (changes.old_version, changes.new_version) == ("v1", "v2")
    found = changes.rows
    assert (found.same, found.added, found.removed, found.edited) == (40, [], [], [])
    assert {each.verdict for each in changes.drift} == {Verdict.STEADY}
    assert [each.p_value for each in changes.drift] == [1.0] * 5


def test_added_and_removed() -> None:
    """Rows that share nothing with the other catalog."""
    mug, lamp, bag = row("Mug"), row("Lamp"), row("Bag")
    found = compare([mug, lamp], [bag, lamp]).rows
    assert (found.added, found.added_labels) == ([bag["row_id"]], ["Bag"])
    assert (found.removed, found.removed_labels) == ([mug["row_id"]], ["Mug"])
    assert (found.same, found.edited) == (1, [])


def test_removed_into_quarantine() -> None:
    """A row that was set aside this time is told from one that is gone."""
    mug, lamp, bag = row("Mug"), row("Lamp"), row("Bag")
    found = compare([mug, lamp, bag], [mug | {"decision": Decision.QUARANTINED}, bag]).rows
    assert found.removed == [mug["row_id"], lamp["row_id"]]
    assert (found.now_quarantined, found.same) == (1, 1)


def test_removed_as_a_copy() -> None:
    """A row that counts as a copy this time is told from one that is gone."""
    mug, lamp, bag = row("Mug"), row("Lamp"), row("Bag")
    found = compare([mug, lamp, bag], [mug | {"decision": Decision.DUPLICATE}, bag]).rows
    assert found.removed == [mug["row_id"], lamp["row_id"]]
    assert (found.now_duplicate, found.now_quarantined, found.same) == (1, 0, 1)


def test_edited_description() -> None:
    """The row id stays and the text differs."""
    [edit] = compare([row("Mug")], [row("Mug", description="Better.")]).rows.examples
    assert edit.row_id == edit.old_row_id == row("Mug")["row_id"]
    assert (edit.label, edit.changed) == ("Mug", ["description"])
    assert edit.before == {"description": "Mug is a mug."}
    assert edit.after == {"description": "Better."}


@pytest.mark.parametrize(
    ("new", "changed"),
    [
        (row("Mug", picture="another"), ["image"]),
        (row("Mug", category="Garden"), ["category"]),
        (row(" MUG ", category="Garden", picture="another"), ["image", "name", "category"]),
        (row("Cup", description="Mug is a mug.", picture="picture of Mug"), ["name"]),
    ],
    ids=["same product", "other category", "spelt otherwise", "same picture"],
)
def test_edited_row_with_a_new_id(new: Row, changed: list[str]) -> None:
    """The product or the picture tells that it is the same row."""
    new = new | {"description": "Mug is a mug."}
    found = compare([row("Mug")], [new]).rows
    assert (found.edited, found.added, found.removed) == ([new["row_id"]], [], [])
    assert found.edited_fields == dict.fromkeys(changed, 1)
    assert found.examples[0].old_row_id == row("Mug")["row_id"]


def test_rows_of_one_product_find_their_own_picture() -> None:
    """Of two variants with one name each is paired with the one that has its picture."""
    red, blue = (row("Mug", picture=each, description=each) for each in ("red", "blue"))
    now = [each | {"row_id": each["row_id"][::-1], "category": "New"} for each in (blue, red)]
    found = compare([red, blue], now).rows
    assert [edit.old_row_id for edit in found.examples] == [blue["row_id"], red["row_id"]]
    assert found.edited_fields == {"category": 2}


def test_each_old_row_is_found_again_once() -> None:
    """Of three new rows with the product of one old row, one is edited and two are added."""
    new = [row("Mug", picture=f"{number}") for number in range(3)]
    found = compare([row("Mug")], new).rows
    assert (len(found.edited), len(found.added), found.removed) == (1, 2, [])


def test_empty_products_are_no_product() -> None:
    """Rows without a name are not taken for one another, nor are rows without a by field."""
    old, new = row("", picture="a"), row("", picture="b")
    assert compare([old], [new]).rows.added == [new["row_id"]]
    by_picture = DATA.model_copy(update={"held_out": DATA.held_out.model_copy(update={"by": None})})
    assert compare([row("Mug")], [row("Mug", picture="b")], by_picture).rows.edited == []


def test_examples_are_few_and_counts_are_whole() -> None:
    """Of many edits twelve are shown, with texts cut."""
    old = [row(f"Mug {number}") for number in range(50)]
    new = [row(f"Mug {number}", description="x" * 5000) for number in range(50)]
    found = compare(old, new).rows
    assert (len(found.edited), len(found.examples)) == (50, 12)
    assert found.examples[0].after["description"].endswith("(3,000 more characters)")


@pytest.mark.parametrize("seed", range(12))
def test_random_halves_are_steady(seed: int) -> None:
    """Chance alone is no drift, though words come in bundles."""
    rows = shop(300, seed)
    random.Random(seed).shuffle(rows)
    changes = compare(rows[:150], rows[150:])
    assert [each.verdict for each in changes.drift] == [Verdict.STEADY] * 5


@pytest.mark.parametrize(
    ("what", "drifted"),
    [
        ("category", lambda each: each | {"category": "new" if each["side"] % 2 else "mug"}),
        ("description length", lambda each: each | {"description": each["description"] * 3}),
        ("longest side of the pictures", lambda each: each | {"side": each["side"] + 250}),
        (
            "words of the descriptions",
            lambda each: each | {"description": each["description"].replace("mug", "cup")},
        ),
        ("language", lambda each: each | {"language": "fr" if each["side"] % 2 else "en"}),
    ],
)
def test_drift_is_found(what: str, drifted: Callable[[Row], Row]) -> None:
    """A changed property is called drifted, by p-value and effect."""
    changes = compare(shop(200, 1), [drifted(each) for each in shop(200, 2)])
    found = drift(changes, what)
    assert found.verdict is Verdict.DRIFTED
    assert found.corrected_p is not None and found.corrected_p < 0.01
    assert found.effect is not None and found.effect > 0.1
    steady = {"category", "longest side of the pictures", "language"} - {what}
    assert {drift(changes, each).verdict for each in steady} == {Verdict.STEADY}


def test_a_small_effect_is_steady_however_sure() -> None:
    """With many rows a shift of a few percent is significant, and still no drift."""

    def lengths(start: int) -> list[Row]:
        return [row(f"{start}-{n}", description="x" * (start + n % 100)) for n in range(4000)]

    found = drift(compare(lengths(100), lengths(106)), "description length")
    assert found.corrected_p is not None and found.corrected_p < 1e-4
    assert (found.effect, found.verdict) == (pytest.approx(0.06), Verdict.STEADY)


def test_values_by_hand() -> None:
    """Two categories in 40 rows each: chi-squared and Cramér's V as in the textbook."""
    old = [row(f"a{n}", category="A" if n < 30 else "B") for n in range(40)]
    new = [row(f"b{n}", category="A" if n < 10 else "B") for n in range(40)]
    found = drift(compare(old, new), "category")
    assert (found.statistic, found.effect) == (pytest.approx(20.0), pytest.approx(0.5))
    assert found.p_value == pytest.approx(7.744e-6, rel=1e-3)
    assert found.corrected_p is not None and found.corrected_p > found.p_value
    assert [(each.value, each.old, each.new) for each in found.counts] == [
        ("A", 30, 10),
        ("B", 10, 30),
    ]


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 50), (1, 1), (50, 1), (29, 200)])
def test_too_few_rows(old: int, new: int) -> None:
    """Nothing is tested, and nothing breaks."""
    changes = compare(shop(old, 1), shop(new, 2))
    assert {each.verdict for each in changes.drift} == {Verdict.TOO_FEW}
    assert {each.p_value for each in changes.drift} == {None}
    json.dumps(changes.to_json(), allow_nan=False)


def test_only_rare_categories_cannot_be_tested() -> None:
    """Each row has a category of its own."""
    old = [row(f"a{number}", category=f"a{number}") for number in range(40)]
    new = [row(f"b{number}", category=f"b{number}") for number in range(40)]
    assert drift(compare(old, new), "category").verdict is Verdict.TOO_FEW
    assert len(drift(compare(old, new), "category").counts) == 20


@pytest.mark.parametrize("texts", [("", "words"), ("", ""), ("same", "same"), ("one", "two")])
def test_equal_and_disjoint_texts(texts: tuple[str, str]) -> None:
    """All rows of a catalog alike: a verdict, no crash, no NaN."""
    old, new = (
        [row(f"{side}{number}", description=text) for number in range(60)]
        for side, text in enumerate(texts)
    )
    changes = compare(old, new)
    json.dumps(changes.to_json(), allow_nan=False)
    expected = Verdict.DRIFTED if texts[0] != texts[1] else Verdict.STEADY
    expected = Verdict.TOO_FEW if texts == ("", "") else expected
    assert drift(changes, "words of the descriptions").verdict is expected


def test_without_a_category_fields_with_few_values_are_compared() -> None:
    """A colour is compared, a name of many values is not."""
    data = DATA.model_copy(
        update={
            "columns": {"image": "i", "name": "n", "description": "d", "colour": "c"},
            "held_out": DATA.held_out.model_copy(update={"by": None}),
        }
    )
    (old, old_ledger), (new, new_ledger) = catalog_of(shop(80, 1)), catalog_of(shop(80, 2))
    old, new = (
        Catalog(each.rows.rename_column("category", "colour"), "shop", "v") for each in (old, new)
    )
    changes = compare_catalogs(new, new_ledger, old, old_ledger, data)
    assert [each.what for each in changes.drift][:2] == ["colour", "description length"]


def test_a_field_that_is_new_is_not_compared() -> None:
    """The previous catalog had no category."""
    (old, old_ledger), (new, new_ledger) = catalog_of([row("Mug")]), catalog_of([row("Mug")])
    old = Catalog(old.rows.remove_columns("category"), "shop", "v")
    changes = compare_catalogs(new, new_ledger, old, old_ledger, DATA)
    assert (changes.rows.same, changes.rows.edited) == (1, [])


def test_words_that_rose_and_fell() -> None:
    """First those that rose most, then those that fell most."""
    old = [row(f"a{n}", description="mug gone" if n < 30 else "mug") for n in range(40)]
    new = [row(f"b{n}", description="mug fresh" if n < 20 else "mug") for n in range(40)]
    found = drift(compare(old, new), "words of the descriptions")
    assert [(each.value, each.old, each.new) for each in found.counts] == [
        ("fresh", 0, 20),
        ("gone", 30, 0),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Mug, the mug!", {"the", "mug"}),
        ("a T-shirt (50%)", {"a", "t-shirt", "50"}),
        ("青花瓷杯", {"青花", "花瓷", "瓷杯"}),
        ("USB 杯。", {"usb", "杯"}),
        ("หมวก", {"หม", "มว", "วก"}),
        ("लाल कुर्ता।", {"लाल", "कुर्ता"}),
        ("빨간 컵", {"빨간", "컵"}),
        (" … ", set()),
    ],
)
def test_words(text: str, words: set[str]) -> None:
    """Words without punctuation; pairs of characters where no spaces are written."""
    assert words_of(text) == words


def test_to_json() -> None:
    """All of it can be written and read back."""
    changes = compare(shop(60, 1), shop(60, 2))
    assert json.loads(json.dumps(changes.to_json()))["rows"]["added"] == changes.rows.added
