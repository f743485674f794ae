"""What is known before training: too few held-out groups, descriptions longer than allowed."""

import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.unit.conftest import Demo
from vlmtune.catalog.ledger import RowLedger
from vlmtune.catalog.split import is_held_out
from vlmtune.encoding import IGNORED, CatalogCollator
from vlmtune.evaluation.preflight import (
    few_groups,
    fraction_for,
    long_descriptions,
    warn_before_training,
)
from vlmtune.models.processor import load_processor


def ledger(train: int, held_out: int, rows_each: int = 2, previous: str | None = None) -> RowLedger:
    """So many groups on each side, and a row that was quarantined."""
    sides = ["train"] * train + ["held_out"] * held_out
    lines = [(f"{side} {group}", side) for group, side in enumerate(sides)] * rows_each
    groups, sides = (list(column) for column in zip(*lines, ("", ""), strict=True))
    table = Dataset.from_dict({"group": groups, "side": sides})
    return RowLedger(table, Path("unused"), previous=previous)


def test_enough_groups_need_no_word() -> None:
    """Groups count, not rows."""
    assert few_groups(ledger(270, 30, rows_each=1), min_groups=30, max_rows=200) == ""
    assert few_groups(ledger(270, 29), min_groups=30, max_rows=200).startswith(
        "the catalog has 29 held-out groups, and a model is kept back with fewer than 30"
    )


def test_the_fraction_that_would_do_is_named() -> None:
    """And that a split carried on must be made anew for it."""
    said = few_groups(ledger(270, 29), min_groups=30, max_rows=200)
    assert "of its 299 groups, data.held_out.fraction: 0.15 would do." in said
    carried = few_groups(ledger(270, 29, previous="id"), min_groups=30, max_rows=200)
    assert "0.15 would do, with data.previous: null to split anew" in carried


@pytest.mark.parametrize("groups", [90, 299, 1000])
def test_the_fraction_very_likely_does(groups: int) -> None:
    """Of 400 catalogs, split by the product's own hash."""
    fraction = fraction_for(groups, 30)
    assert fraction is not None
    enough = sum(
        sum(is_held_out(f"{catalog}/{group}", fraction) for group in range(groups)) >= 30
        for catalog in range(400)
    )
    assert enough >= 376  # of 390.9 expected, less 5 standard deviations


def test_a_small_catalog_is_told_so() -> None:
    """Not even half of its groups are enough."""
    said = few_groups(ledger(50, 10), min_groups=30, max_rows=200)
    assert "its 60 groups are too few" in said and "fraction" not in said


def test_the_rows_that_are_evaluated_count() -> None:
    """Each of them is of another group at best."""
    said = few_groups(ledger(270, 60), min_groups=30, max_rows=20)
    assert said.startswith("evaluation.max_rows is 20, and at least 30 groups")


def test_descriptions_that_cannot_be_written_in_full(demo: Demo) -> None:
    """Counted as the tokens that a model is trained to write, its last included."""
    config = demo.config.model
    processor: Any = load_processor(config.id, None, config)
    collator = CatalogCollator(processor=processor, completion_only_loss=True)
    end = processor.tokenizer.eos_token_id
    needed = []
    for row in demo.held_out:
        labels = collator([row])["labels"][0]
        needed.append([token for token in labels.tolist() if token != IGNORED].index(end) + 1)
    numbers = demo.held_out.with_format(None)["row"]
    few = type(demo.catalog)(demo.catalog.rows.select(numbers), "shop", "1")
    limit = sorted(needed)[len(needed) // 2]
    longer = sum(tokens > limit for tokens in needed)
    said = long_descriptions(few, processor.tokenizer, limit)
    assert re.match(f"{longer} of {len(needed)} descriptions .* longest {max(needed)}: raise", said)
    assert long_descriptions(few, processor.tokenizer, max(needed)) == ""
    assert long_descriptions(few, processor.tokenizer, None) == ""


def test_the_demo_needs_no_warning_as_it_is(demo: Demo) -> None:
    """Only where less is asked of it, or more."""
    config = demo.config
    processor: Any = load_processor(config.model.id, None, config.model)
    sides = [(group, "held_out") for group in demo.examples.held_out["group"]]
    lines = Dataset.from_dict({"group": [g for g, _ in sides], "side": [s for _, s in sides]})
    split = RowLedger(lines, Path("unused"))

    def warned(**changes: Any) -> list[str]:
        asked = {
            "min_groups": config.gate.min_groups,
            "max_rows": config.evaluation.max_rows,
            "max_new_tokens": config.generation["max_new_tokens"],
        }
        found = warn_before_training(demo.catalog, split, processor.tokenizer, **asked | changes)
        return list(found)

    assert warned() == []
    assert warned(min_groups=37) == ["gate.min_groups"]
    assert warned(max_new_tokens=8) == ["generation.max_new_tokens"]
