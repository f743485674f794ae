"""What is known of an evaluation before anything is trained: too few groups, too few tokens."""

import math
from typing import TYPE_CHECKING, Any

from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import RowLedger, Side
from vlmtune.config.data import DESCRIPTION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Groups are held out by a hash: of a share of them, two standard deviations less may come.
DEVIATIONS = 2.0
FRACTIONS = [step / 20 for step in range(1, 11)]  # 0.05 to 0.5
BATCH = 1_000  # descriptions


def warn_before_training(
    catalog: Catalog,
    ledger: RowLedger,
    tokenizer: "PreTrainedTokenizerBase | Any",
    *,
    min_groups: int,
    max_rows: int,
    max_new_tokens: int | None,
) -> dict[str, str]:
    """Config key -> why a model that is trained with it would be rejected, and what would do.

    Args:
        tokenizer: of the base model.
        min_groups, max_rows, max_new_tokens: of `gate`, `evaluation` and `generation`.
    """
    found = {
        "gate.min_groups": few_groups(ledger, min_groups, max_rows),
        "generation.max_new_tokens": long_descriptions(catalog, tokenizer, max_new_tokens),
    }
    return {key: problem for key, problem in found.items() if problem}


def few_groups(ledger: RowLedger, min_groups: int, max_rows: int) -> str:
    """Why fewer groups than `min_groups` will be evaluated; empty if enough will."""
    sides = set(zip(ledger.lines["group"], ledger.lines["side"], strict=True))
    groups = sum(bool(side) for _, side in sides)
    held_out = sum(side == Side.HELD_OUT for _, side in sides)
    if min(held_out, max_rows) >= min_groups:
        return ""
    if held_out >= min_groups:
        return (
            f"evaluation.max_rows is {max_rows}, and at least {min_groups} groups must be "
            "evaluated before a model goes out: raise it."
        )
    anew = ", with data.previous: null to split anew" if ledger.previous else ""
    fraction = fraction_for(groups, min_groups)
    advice = (
        f"of its {groups} groups, data.held_out.fraction: {fraction:g} would do{anew}"
        if fraction
        else f"its {groups} groups are too few to hold out so many and train on as many: add "
        "products, or lower gate.min_groups and trust the intervals less"
    )
    return (
        f"the catalog has {held_out} held-out groups, and a model is kept back with fewer than "
        f"{min_groups}: {advice}."
    )


def fraction_for(groups: int, wanted: int) -> float | None:
    """The least round share of the groups that very likely holds out as many as are wanted."""
    for fraction in FRACTIONS:
        mean, variance = groups * fraction, groups * fraction * (1 - fraction)
        if mean - DEVIATIONS * math.sqrt(variance) >= wanted:
            return fraction
    return None


def long_descriptions(
    catalog: Catalog, tokenizer: "PreTrainedTokenizerBase | Any", max_new_tokens: int | None
) -> str:
    """How many of the catalog's own descriptions no model could write in full; empty if none."""
    if max_new_tokens is None:
        return ""
    needed = [
        len(tokens) + 1  # for the end-of-text token
        for batch in catalog.texts().iter(batch_size=BATCH)
        for tokens in tokenizer(
            [text.strip() for text in batch[DESCRIPTION]], add_special_tokens=False
        )["input_ids"]
    ]
    longer = sum(tokens > max_new_tokens for tokens in needed)
    if not longer:
        return ""
    return (
        f"{longer} of {len(needed)} descriptions take more than {max_new_tokens} tokens, the "
        f"longest {max(needed)}: raise generation.max_new_tokens, or texts as long are cut."
    )
