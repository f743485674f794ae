"""Rows become conversations; pictures are decoded only when a row is asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmtune.catalog.ledger import Side
from vlmtune.catalog.loading import load_catalog
from vlmtune.config.data import PromptConfig
from vlmtune.errors import UserError
from vlmtune.prompting import (
    build_completion,
    build_prompt,
    format_examples,
    format_prompts,
    with_pictures,
)

PROMPT = PromptConfig(system="You sell.", template="Describe {name} of {category}.")


def test_prompt_with_and_without_a_system_message() -> None:
    """The template is filled in; an empty system message is left out."""
    fields = {"name": "Mug", "category": "Kitchen"}
    user = {"role": "user", "content": "Describe Mug of Kitchen."}
    assert build_prompt(PROMPT, fields) == [{"role": "system", "content": "You sell."}, user]
    assert build_prompt(PromptConfig(template=PROMPT.template), fields) == [user]


def test_braces_in_a_field_are_text() -> None:
    """A product's name is never read as a template."""
    messages = build_prompt(PROMPT, {"name": "{category} {0.__class__}", "category": "K"})
    assert messages[-1]["content"] == "Describe {category} {0.__class__} of K."


def test_completion_is_trimmed() -> None:
    """White space around a description is nothing to learn."""
    assert build_completion(" A mug.\n") == [{"role": "assistant", "content": "A mug."}]


@pytest.fixture
def loaded(
    make_catalog: Callable[..., Path],
    make_rows: Callable[[int], list[dict[str, Any]]],
    make_data: Callable[..., Any],
) -> tuple[Any, Any, Any]:
    """A catalog, its ledger and the config: twelve rows on six shelves."""
    rows = make_rows(12)
    for number, row in enumerate(rows):
        row["Category"] = f"Shelf {number % 6}"
    data = make_data(make_catalog(rows), held_out={"fraction": 0.5, "by": "category"})
    return *load_catalog(data, "v"), data


def test_examples_split_by_group(loaded: tuple[Any, Any, Any]) -> None:
    """Each row is on one side with its own prompt and completion; groups stay together."""
    catalog, ledger, data = loaded
    examples = format_examples(catalog, ledger, data, PROMPT)
    sides = [list(examples.train), list(examples.held_out)]
    assert sorted(row["row"] for side in sides for row in side) == list(range(12))
    groups = [{catalog.rows[row["row"]]["category"] for row in side} for side in sides]
    assert not groups[0] & groups[1]
    told = dict(zip(ledger.lines["row_id"], ledger.lines["side"], strict=True))
    for side, found in zip(Side, sides, strict=True):
        assert found and {told[row["row_id"]] for row in found} == {side}
    for row in sides[0] + sides[1]:
        source = catalog.rows[row["row"]]
        assert row["row_id"] == source["row_id"]
        wanted = f"Describe {source['name']} of {source['category']}."
        assert row["prompt"][-1]["content"] == wanted
        assert row["completion"][0]["content"] == source["description"]


def test_pictures_come_with_their_rows(loaded: tuple[Any, Any, Any]) -> None:
    """A row's picture is that of its number in the catalog, whatever was selected or shuffled."""
    catalog, ledger, data = loaded
    examples = with_pictures(format_examples(catalog, ledger, data, PROMPT).train, catalog)
    pixels = set()
    for row in examples.shuffle(seed=1):
        (picture,) = row["images"]
        name = catalog.rows[row["row"]]["images"][0]["path"]
        colour = sum(map(ord, name)) * 7919 % 2**24
        assert picture.getpixel((0, 0)) == (colour >> 16, colour >> 8 & 255, colour & 255)
        pixels.add(picture.getpixel((0, 0)))
    assert len(pixels) > 1


def test_quarantined_rows_are_nobodys_examples(
    make_catalog: Callable[..., Path],
    make_rows: Callable[[int], list[dict[str, Any]]],
    make_data: Callable[..., Any],
) -> None:
    """Row numbers are those of the catalog, which has no gaps where a row was kept out."""
    rows = make_rows(12)
    rows[0]["description"] = ""
    data = make_data(make_catalog(rows), held_out={"fraction": 0.5}, max_quarantine=0.1)
    catalog, ledger = load_catalog(data, "v")
    examples = format_examples(catalog, ledger, data, PROMPT)
    found = [*examples.train, *examples.held_out]
    assert sorted(row["row"] for row in found) == list(range(11))
    assert all(catalog.rows[row["row"]]["row_id"] == row["row_id"] for row in found)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"max_quarantine": 0.05}, "1 of 12 rows are quarantined"),
        ({"held_out": {"fraction": 1e-9}}, "the held_out side of the split would be empty"),
    ],
)
def test_a_catalog_that_cannot_be_trained_on(
    make_catalog: Callable[..., Path],
    make_rows: Callable[[int], list[dict[str, Any]]],
    make_data: Callable[..., Any],
    changes: dict[str, Any],
    problem: str,
) -> None:
    """Reading it raises nothing; writing conversations does."""
    rows = make_rows(12)
    rows[0]["description"] = ""
    data = make_data(make_catalog(rows), **{"max_quarantine": 0.5} | changes)
    catalog, ledger = load_catalog(data, "v")
    with pytest.raises(UserError, match=problem):
        format_examples(catalog, ledger, data, PROMPT)


def test_a_catalog_without_descriptions_becomes_prompts(
    make_catalog: Callable[..., Path],
    make_rows: Callable[[int], list[dict[str, Any]]],
    make_data: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Neither column nor texts are asked for; a row without a picture is quarantined as ever."""
    rows = make_rows(4)
    described = make_data(make_catalog(rows, name="described"))
    for row in rows:
        del row["description"]
    rows[2]["file_name"] = ""
    new = make_data(make_catalog(rows, name="new")).without_descriptions()
    catalog, ledger = load_catalog(new, "v")
    assert set(catalog.rows.column_names) == {"row_id", "images", "name", "category"}
    assert [line["decision"] for line in ledger.lines].count("quarantined") == 1
    prompts = format_prompts(catalog, ledger, PROMPT, tmp_path)
    assert [row["prompt"][-1]["content"] for row in prompts] == [
        f"Describe Mug {number} of Kitchen." for number in (1, 2, 4)
    ]
    known, _ = load_catalog(described, "v")  # the same rows, whether they are described or not
    assert set(prompts["row_id"]) <= set(known.rows["row_id"])


def test_a_catalog_that_is_all_in_quarantine_is_not_described(
    make_catalog: Callable[..., Path],
    make_rows: Callable[[int], list[dict[str, Any]]],
    make_data: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Some rows may be broken, not all."""
    rows = make_rows(2)
    for row in rows:
        row["file_name"] = "nowhere.png"
    catalog, ledger = load_catalog(make_data(make_catalog(rows)).without_descriptions(), "v")
    with pytest.raises(UserError, match="2 of 2 rows are quarantined"):
        format_prompts(catalog, ledger, PROMPT, tmp_path)
