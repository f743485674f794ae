"""Whole catalogs: what ties rows into groups, what does not, and rows that count once."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import Decision, RowLedger
from vlmtune.catalog.loading import PreviousCatalog, load_catalog
from vlmtune.catalog.report.data_report import render_data_report
from vlmtune.catalog.report.ledger_page import render_ledger_page
from vlmtune.config.data import PromptConfig
from vlmtune.errors import UserError
from vlmtune.prompting import format_examples

Row = dict[str, str]
Load = Callable[..., tuple[Catalog, RowLedger]]
COLUMNS = {name: name for name in ("sku", "parent_sku", "name", "description")}
COLUMNS |= {"image": "file_name"}
HALF = {"fraction": 0.5}


def drawn(seed: int) -> Image.Image:
    """A picture unlike all others."""
    pixels = numpy.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype="uint8")
    return Image.fromarray(pixels).resize((64, 48), Image.Resampling.NEAREST)


def product(sku: str, number: int, **changes: str) -> Row:
    """A row with a picture, a name and a description of its own."""
    row = {"sku": sku, "parent_sku": "", "name": f"Thing {sku}", "file_name": f"{number}.png"}
    return row | {"description": f"This is thing number {sku}, like no other."} | changes


def products(count: int, **changes: str) -> list[Row]:
    """Rows that have nothing in common but what `changes` says."""
    return [product(f"S{number}", number, **changes) for number in range(count)]


def families(count: int) -> list[Row]:
    """A parent and two variants each, with names and pictures of their own and one description."""
    return [
        product(
            f"P{family}{variant}",
            3 * family + place,
            parent_sku=f"P{family}" if variant else "",
            description=f"Thing {family} is made of wood.",
        )
        for family in range(count)
        for place, variant in enumerate(("", "-red", "-blue"))
    ]


@pytest.fixture
def load(make_catalog: Callable[..., Path], make_data: Callable[..., Any]) -> Load:
    """Reads rows, whose pictures `N.png` are drawn unless `pictures` has them."""

    def read(
        rows: Sequence[Row],
        pictures: dict[str, bytes] | None = None,
        previous: tuple[Catalog, RowLedger] | None = None,
        prompt: Sequence[str] | None = None,
        described: bool = True,
        **data: Any,
    ) -> tuple[Catalog, RowLedger]:
        folder = make_catalog([dict(row) for row in rows])
        for name in {row["file_name"] for row in rows}:
            if name in (pictures or {}):
                (folder / name).write_bytes((pictures or {})[name])
            elif not (folder / name).exists():
                drawn(int(name.removesuffix(".png"))).save(folder / name)
        optional = {"texts": {"parent_sku": {"required": False}}}
        config = make_data(
            folder, **{"columns": COLUMNS, "contract": optional, "held_out": HALF} | data
        )
        config = config if described else config.without_descriptions()
        before = PreviousCatalog(*previous) if previous else None
        return load_catalog(config, "v", previous=before, prompt_fields=prompt)

    return read


def column(ledger: RowLedger, name: str) -> list[Any]:
    """One column of the ledger."""
    return list(ledger.lines[name])


def leaks(rows: Sequence[Row], ledger: RowLedger) -> int:
    """Held-out rows whose description a training row has, letter by letter."""
    sides = column(ledger, "side")
    texts = [row["description"].casefold() for row in rows]
    train = {text for text, side in zip(texts, sides, strict=True) if side == "train"}
    return sum(
        side == "held_out" and text in train for text, side in zip(texts, sides, strict=True)
    )


def reports(catalog: Catalog, ledger: RowLedger, data: Any) -> tuple[str, str]:
    """The data report and the ledger's page."""
    report = render_data_report(catalog, ledger, data, None, "Shop")
    return report, render_ledger_page(catalog, ledger, "Shop")


# Ties -----------------------------------------------------------------------------------------


def test_variants_with_one_description_are_a_group(load: Load) -> None:
    """Of held-out rows none has a description that was trained on."""
    rows = families(20)
    _, ledger = load(rows)
    assert leaks(rows, ledger) == ledger.counts["held_out_sharing_description"] == 0
    assert ledger.counts["train"] and ledger.counts["held_out"]
    assert set(Counter(column(ledger, "group")).values()) == {3}


@pytest.mark.parametrize(
    ("other", "ties"),
    [
        ("a  red MUG:\nmade by hand", True),  # case, white space and punctuation
        ("\uff21 red\u00a0mug \N{EM DASH} made by hand!", True),  # NFKC
        ("A blue mug, made by hand.", False),
        ("A red mug, made by hands.", False),
    ],
)
def test_equal_descriptions(load: Load, other: str, ties: bool) -> None:
    """Spelling does not tell descriptions apart, a single letter does."""
    texts = ["A red mug, made by hand.", other]
    _, ledger = load([product(text, n, description=text) for n, text in enumerate(texts)])
    assert (len(set(column(ledger, "group"))) == 1) == ties


def test_marks_and_symbols_tell_descriptions_apart(load: Load) -> None:
    """Vowel signs of Hindi are no punctuation, and neither is a currency."""
    texts = ["कि", "का", "5 €", "5 $", "!", "?"]
    _, ledger = load([product(str(n), n, description=text) for n, text in enumerate(texts)])
    assert len(set(column(ledger, "group"))) == len(texts)


@pytest.mark.parametrize(("similarity", "groups"), [(None, 3), (0.8, 2), (0.97, 3)])
def test_near_equal_descriptions(load: Load, similarity: float | None, groups: int) -> None:
    """One word of 30 differs; a third text has nothing to do with them."""
    words = "this lamp of brushed brass gives a warm and gentle light to every room of the house"
    texts = [f"{words} in spring", f"{words} in summer", "A mug of blue clay that holds much tea."]
    rows = [product(str(n), n, description=text) for n, text in enumerate(texts)]
    duplicates = {"min_description_similarity": similarity}
    _, ledger = load(rows, duplicates=duplicates)
    assert len(set(column(ledger, "group"))) == groups


@pytest.mark.parametrize("by", [["parent_sku", "sku"], "parent_sku"])
def test_a_parent_belongs_to_its_family(load: Load, by: Any) -> None:
    """Where the first field is empty the second counts, whose values mean the same."""
    rows = [row | {"description": f"About {row['sku']}."} for row in families(10)]
    rows[1]["parent_sku"] = " p0 "
    _, ledger = load(rows, held_out={"fraction": 0.5, "by": by}, contract={})
    if by == "parent_sku":  # without a fallback it must be there
        assert ledger.counts["quarantined"] == 10
    else:
        assert ledger.counts["kept"] == 30
        assert set(Counter(column(ledger, "group")).values()) == {3}


# What says nothing ----------------------------------------------------------------------------


def saved(picture: Image.Image, quality: int) -> bytes:
    """A JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def says_nothing(kind: str) -> tuple[list[Row], dict[str, bytes]]:
    """40 products, 20 of which share something that says nothing about them."""
    rows = products(40)
    placeholder = drawn(1000)
    pictures: dict[str, bytes] = {}
    for number, row in enumerate(rows[:20]):
        if kind == "description":
            row["description"] = "Ask for price" + "." * number
        elif kind == "placeholder":
            row["file_name"] = "placeholder.jpg"
            pictures["placeholder.jpg"] = saved(placeholder, 90)
        elif kind == "saved anew":
            row["file_name"] = f"again{number}.jpg"
            pictures[row["file_name"]] = saved(placeholder, 60 + number)
        else:
            row["file_name"] += "|sizes.jpg"
            pictures["sizes.jpg"] = saved(placeholder, 90)
    return rows, pictures


def shares(row: Row, kind: str) -> bool:
    """Whether it is one of the 20."""
    return int(row["sku"][1:]) < 20


@pytest.mark.parametrize("kind", ["description", "placeholder", "saved anew", "size chart"])
def test_what_many_products_share_does_not_tie(
    make_catalog: Callable[..., Path], make_data: Callable[..., Any], kind: str
) -> None:
    """Each product is a group; held-out rows that share it are marked, counted and shown."""
    rows, pictures = says_nothing(kind)
    folder = make_catalog(rows)
    for number in range(40):
        drawn(number).save(folder / f"{number}.png")
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    config = make_data(
        folder,
        columns=COLUMNS,
        contract={
            "texts": {"parent_sku": {"required": False}},
            "pictures": {"max_count": 2},
        },
        held_out=HALF,
        picture_separator="|",
    )
    catalog, ledger = load_catalog(config, "v")
    assert len(set(column(ledger, "group"))) == 40
    what = "description" if kind == "description" else "image"
    concerned = [
        what if side == "held_out" and shares(row, kind) else ""
        for row, side in zip(rows, column(ledger, "side"), strict=True)
    ]
    assert column(ledger, "shared_with_train") == concerned
    marked = sum(map(bool, concerned))
    assert 0 < marked == ledger.counts[f"held_out_sharing_{what}"] < 20
    (value,) = ledger.shared
    assert (value.kind, value.rows, value.products, value.held_out) == (what, 20, 20, marked)
    assert not value.ties
    report, page = reports(catalog, ledger, config)
    assert f"20 rows of 20 products, {marked} held out" in report
    assert "What more than 10 products share" in report
    assert page.count(f"{what} as in training") == marked
    prompt = PromptConfig(template="Describe {name}.")
    examples = format_examples(catalog, ledger, config, prompt)
    assert examples.held_out["shared_with_train"].count(what) == marked
    # With a higher limit it ties; the message says what, and what to do.
    limit = config.duplicates.model_copy(update={"max_sharing_products": 20})
    catalog, ledger = load_catalog(config.model_copy(update={"duplicates": limit}), "v")
    assert max(Counter(column(ledger, "group")).values()) == 20
    assert ledger.counts[f"held_out_sharing_{what}"] == 0


@pytest.mark.parametrize("shared", ["description", "file_name"])
def test_products_are_counted_not_rows(load: Load, shared: str) -> None:
    """Twenty variants of two products, by `held_out.by` or by name, may share what they like."""
    rows = products(40)
    for number, row in enumerate(rows[:20]):
        row |= {"parent_sku": f"P{number % 2}", shared: rows[0][shared]}
    by = {"fraction": 0.5, "by": ["parent_sku", "sku"]}
    _, ledger = load(rows, held_out=by)
    assert max(Counter(column(ledger, "group")).values()) == 20
    for number, row in enumerate(rows[:20]):
        row["name"] = f"Name {number % 2}"
    _, ledger = load(rows)
    assert max(Counter(column(ledger, "group")).values()) == 20


def test_a_catalog_that_is_one_group(load: Load) -> None:
    """The run stops, and says what ties the rows."""
    _, ledger = load(products(9, description="One for all."))
    with pytest.raises(UserError) as caught:
        ledger.require_both_sides(0.5)
    assert "tied by the description 'One for all.' (9 rows, 9 products)" in caught.value.problem
    assert "data.duplicates.max_sharing_products" in caught.value.mend


@pytest.mark.parametrize("shared", ["description", "file_name"])
def test_a_changed_count_moves_no_row(load: Load, shared: str) -> None:
    """More products, then fewer, then more share it: known rows keep their sides throughout."""
    rows = products(40)
    many = [row | {shared: rows[0][shared]} for row in rows[:20]] + rows[20:]
    few = many[:6] + many[20:]
    first = load(few)
    assert max(Counter(column(first[1], "group")).values()) == 6
    grown = load(many, previous=first)
    known = dict(zip((row["sku"] for row in many), column(grown[1], "side"), strict=True))
    assert [known[row["sku"]] for row in few] == column(first[1], "side")
    assert set(list(known.values())[:20]) == {"train", "held_out"}
    both = [
        row
        for side in ("train", "held_out")
        for row in [each for each in many[:20] if known[each["sku"]] == side][:3]
    ]
    previous = grown
    stay = both + rows[20:]
    for today in (stay, stay, stay + [row for row in many if row not in stay]):
        previous = load(today, previous=previous)
        assert column(previous[1], "side")[:26] == [known[row["sku"]] for row in stay]
        assert max(Counter(column(previous[1], "group")).values()) == 1
        assert previous[1].counts["quarantined"] == 0
        what = "description" if shared == "description" else "image"
        assert previous[1].counts[f"held_out_sharing_{what}"] >= 3


# Copies ---------------------------------------------------------------------------------------


def test_exact_copies_count_once(load: Load) -> None:
    """The first row is kept; the ledger names it in the lines of its copies, and adds up."""
    rows = products(20)
    again = [
        rows[3] | {"sku": "copy"},
        rows[3],
        rows[4] | {"description": "Other words."},
        rows[5] | {"name": "Other name"},
        rows[6] | {"file_name": "99.png"},
    ]
    catalog, ledger = load([*rows, *again], prompt=["name"])
    counts = ledger.counts
    assert counts["rows_read"] == 25 == sum(counts[decision] for decision in Decision)
    assert (counts["kept"], counts["duplicate"], len(catalog.rows)) == (23, 2, 23)
    ids = column(ledger, "row_id")
    assert column(ledger, "copy_of")[20:] == [ids[3], ids[3], "", "", ""]
    for line in list(ledger.lines)[20:22]:
        assert (line["decision"], line["side"], line["group"]) == ("duplicate", "", "")
        (reason,) = line["reasons"]
        assert reason["code"] == "exact_copy"
        assert ids[3] in reason["message"] and "metadata.csv row 4" in reason["message"]
    # Where the prompt names the sku, rows of another one are no copies.
    assert load([*rows, *again], prompt=["name", "sku"])[1].counts["duplicate"] == 1


def test_copies_in_examples_and_on_pages(load: Load, make_data: Callable[..., Any]) -> None:
    """Neither trained on nor scored; shown with the pictures of the row they are copies of."""
    rows = products(20)
    catalog, ledger = load([*rows, *rows], prompt=["name"])
    config = make_data(Path(catalog.source), columns=COLUMNS, held_out=HALF)
    examples = format_examples(catalog, ledger, config, PromptConfig(template="{name}"))
    assert len(examples.train) + len(examples.held_out) == 20
    report, page = reports(catalog, ledger, config)
    assert "20 are exact copies of other rows and count once" in report
    assert "40 rows read: 0 quarantined, 20 duplicate" in " ".join(page.split())
    assert page.count("<img") == 40


def test_a_copy_still_ties(load: Load) -> None:
    """A copy of P1 that is sold as P2 ties the two: P2 must not be held out of P1's training."""
    rows = products(20)
    rows[1] |= {"parent_sku": "P1"}
    rows[2] |= {"parent_sku": "P2"}
    copy = rows[1] | {"sku": "copy", "parent_sku": "P2"}
    by = {"fraction": 0.5, "by": ["parent_sku", "sku"]}
    _, ledger = load([*rows, copy], prompt=["name"], held_out=by)
    groups = column(ledger, "group")
    assert groups[1] == groups[2] == "P1"
    assert column(ledger, "decision")[20] == "duplicate"


def test_many_copies_tie_nothing(load: Load) -> None:
    """A placeholder with one text for 20 families: one row is left, the families stay apart."""
    rows = [product(f"S{n}", n, parent_sku=f"P{n}") for n in range(20)]
    empty = {"name": "Mug", "description": "Ask for price.", "file_name": "99.png"}
    copies = [row | empty | {"sku": f"{row['sku']}-2"} for row in rows]
    by = {"fraction": 0.5, "by": ["parent_sku", "sku"]}
    catalog, ledger = load([*rows, *copies], prompt=["name"], held_out=by)
    assert ledger.counts["duplicate"] == 19
    assert len(catalog.rows) == 21
    assert len(set(column(ledger, "group")) - {""}) == 20


def test_the_known_one_of_copies_is_kept(load: Load) -> None:
    """A copy above a known row does not take its place, nor its side."""
    rows = products(20)
    first = load(rows, prompt=["name"])
    copies = [row | {"sku": f"copy of {row['sku']}"} for row in rows]
    _, ledger = load([*copies, *rows], previous=first, prompt=["name"])
    assert column(ledger, "decision") == ["duplicate"] * 20 + ["kept"] * 20
    assert column(ledger, "side")[20:] == column(first[1], "side")
    assert column(ledger, "copy_of")[:20] == column(first[1], "row_id")


def test_what_is_shared_is_named_by_a_row_that_is_kept(load: Load) -> None:
    """Not by the copy that stands above it, whose file is another one."""
    pictures = {f"same{n}.jpg": saved(drawn(1000), 60 + n) for n in (1, 2)}
    rows = products(20)
    for number in (0, 1):
        rows[number]["file_name"] = f"same{2 - number}.jpg"
    first = load(rows, pictures, prompt=["name"])
    catalog, ledger = load(
        [rows[1] | {"sku": "copy"}, *rows], pictures, previous=first, prompt=["name"]
    )
    (value,) = [each for each in ledger.shared if each.kind == "image"]
    assert (value.label, value.row_id, value.rows) == ("same2.jpg", catalog.rows["row_id"][0], 3)


def test_rows_to_be_described_are_no_copies(load: Load) -> None:
    """Each of them gets its description, equal or not."""
    catalog, ledger = load(products(5) * 2, described=False, prompt=["name"])
    assert len(catalog.rows) == ledger.counts["kept"] == 10


def test_a_ledger_of_an_earlier_version(load: Load) -> None:
    """It knows neither copies nor what is shared: both copies and both sides of a description
    are in it. One copy stays, and the rows that would leak are trained on."""
    rows = families(4)
    catalog, ledger = load(rows)
    sides = ["train", "held_out", "train"] * 4
    lines = ledger.lines.remove_columns(["shared_with_train", "copy_of", "side"])
    old = replace(ledger, lines=lines.add_column("side", sides), shared=[])
    assert old.counts["duplicate"] == old.counts["held_out_sharing_description"] == 0
    new = products(20)
    _, today = load([*new, *rows, rows[0]], previous=(catalog, old), prompt=["name"])
    assert set(column(today, "side")[20:32]) == {"train"}
    assert column(today, "decision")[20:] == ["kept"] * 12 + ["duplicate"]
    assert today.counts["held_out_sharing_description"] == 0
