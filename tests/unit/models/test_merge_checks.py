"""Outputs are compared token by token, and what cannot be measured is no pass."""

import math
from typing import Any

import pytest
import torch

from tests.tolerance import distance, rounding_bound
from tests.unit.conftest import Demo
from vlmtune.models import merge_checks
from vlmtune.models.merge_checks import (
    Distance,
    answer_logits,
    check_adapter_works,
    check_divergence,
    measure_distance,
    pick_rows,
)


def test_divergence_of_two_distributions() -> None:
    """By hand: 0.75 ln(0.75 / 0.25) + 0.25 ln(0.25 / 0.75), and 0 for the same one."""
    one = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    other = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    measured = measure_distance([one], [other])
    assert measured.tokens == 2 and measured.agreement == 0.5
    # Each logit is a logarithm that was rounded once; all the rest is in doubles.
    terms = 0.75 * abs(math.log(0.75)) + 0.25 * abs(math.log(0.25))
    bound = rounding_bound(torch.float32, 4, terms)
    assert measured.kl == pytest.approx(0.5 * math.log(3) / 2, abs=bound)


def test_equal_logits_are_exactly_alike() -> None:
    """Over a vocabulary of real size, in bf16."""
    logits = torch.randn(3, 152_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    measured = measure_distance([logits], [logits.clone()])
    assert (measured.kl, measured.agreement) == (0.0, 1.0)


def test_nothing_compared_is_no_pass() -> None:
    """Without rows no check is met."""
    nothing = measure_distance([], [])
    assert not check_adapter_works(nothing, nothing).met
    assert not check_divergence(nothing, nothing, nothing, 0.1).met


def measured(kl: float) -> Distance:
    """One with this mean KL."""
    return Distance(tokens=1_024, kl=kl, agreement=0.9)


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1.0])
def test_bounds_know_no_nats(unit: float) -> None:
    """Only ratios of what was measured count: the adapter's change, noise, and divergence."""
    change, noise = measured(100 * unit), measured(unit)

    def passes(divergence: float) -> bool:
        return check_divergence(measured(divergence * unit), change, noise, 0.1).met

    assert [passes(divergence) for divergence in (0, 1, 11.9, 12.1, 100)] == [1, 1, 1, 0, 0]
    assert [check_adapter_works(measured(kl * unit), noise).met for kl in (0, 1, 3.9, 4.1)] == [
        False,
        False,
        False,
        True,
    ]


def test_an_adapter_of_nothing_does_not_work_without_noise() -> None:
    """No change is no change, however small the noise is."""
    assert not check_adapter_works(measured(0), measured(0)).met


def test_rows_are_drawn(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of another group; all of them where they are few."""
    monkeypatch.setattr(merge_checks, "CHECKED_ROWS", 4)
    ids = list(demo.held_out.with_format(None)["row_id"])
    assert len(set(pick_rows(demo.held_out).with_format(None)["group"])) == 4
    few = demo.held_out.select(range(3))
    assert list(pick_rows(few).with_format(None)["row_id"]) == ids[:3]


def test_logits_are_those_of_the_answer(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stands in the place of the token it is about, and long answers are cut."""
    from vlmtune.encoding import CatalogCollator

    model, processor = demo.model()
    row = demo.held_out[0]
    (logits,) = answer_logits(model, processor, demo.held_out.select([0]))
    batch: dict[str, Any] = CatalogCollator(processor=processor, completion_only_loss=True)([row])
    labels = batch.pop("labels")[0]
    with torch.inference_mode():
        everything = model(**batch).logits[0]
    expected = everything[:-1][labels[1:] != -100]
    assert logits.shape == expected.shape
    assert distance(logits, expected) <= rounding_bound(torch.bfloat16, 1)
    monkeypatch.setattr(merge_checks, "CHECKED_TOKENS", 5)
    (cut,) = answer_logits(model, processor, demo.held_out.select([0]))
    assert cut.shape == logits[:5].shape
    assert distance(cut, logits[:5]) <= rounding_bound(torch.bfloat16, 1)


def test_a_model_that_gives_all_logits(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every family can be asked for the last ones only."""
    model, processor = demo.model()
    rows = demo.held_out.select([0])
    (asked,) = answer_logits(model, processor, rows)
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: forward(**inputs))
    (given,) = answer_logits(model, processor, rows)
    assert asked.shape == given.shape
    assert distance(asked, given) <= rounding_bound(torch.bfloat16, 1)
