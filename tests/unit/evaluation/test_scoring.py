"""From texts to scores, on texts whose scores are plain."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from vlmtune.config.evaluation import EvaluationConfig, RulesConfig
from vlmtune.evaluation.results import BASE, TUNED, EvaluationReport
from vlmtune.evaluation.scoring import (
    Answers,
    HeldOut,
    answers_in,
    build_report,
    choose_lead_metric,
)

REFERENCES = ["a blue mug for tea", "a red lamp for desks", "a green vase of glass"]
HELD_OUT = HeldOut(
    records=[
        {"row_id": f"r{at}", "name": f"n{at}", "category": category, "description": f" {text} "}
        for at, (category, text) in enumerate(
            zip(["Home", "Light", "Home"], REFERENCES, strict=True)
        )
    ],
    groups=["g0", "g1", "g2"],
    shared_with_train=["", "image", ""],
    prompts=[["Describe it."]] * 3,
    rows=9,
    partners={0: 2, 2: 1},
)
CONFIG = EvaluationConfig(rules=RulesConfig(banned=["cheap"]))


def answers(texts: list[str], **changes: Any) -> Answers:
    """What a model said, with some losses."""
    return Answers(**{"texts": texts, "losses": [1.0, 2.0, 3.0], "seconds": 1.5, **changes})


@pytest.fixture
def both() -> dict[str, Answers]:
    """A base that knows nothing and a tuned model that knows all but one row."""
    tuned = [REFERENCES[0], "a cheap lamp", REFERENCES[2]]
    swapped = {0: REFERENCES[2], 2: REFERENCES[2]}
    return {BASE: answers(["x", "y", "z"]), TUNED: answers(tuned, swapped=swapped)}


def test_scores_of_all_rows(both: dict[str, Answers]) -> None:
    """Means, their intervals, and one record for each row."""
    report = build_report(HELD_OUT, both, CONFIG)
    tuned = report.metrics[TUNED]
    assert report.models == [BASE, TUNED] and (report.rows, report.held_out_rows) == (3, 9)
    assert report.metrics[BASE]["rouge_l"] == 0.0
    assert [row.scores[TUNED] for row in report.predictions] == pytest.approx([1, 0.5, 1])
    assert tuned["rouge_l"] == pytest.approx(5 / 6)
    assert (tuned["answer_loss"], tuned["perplexity"]) == (2.0, pytest.approx(math.exp(2)))
    found = report.intervals[TUNED]["rouge_l"]
    assert found.mean == pytest.approx(5 / 6) and (found.groups, found.rows) == (3, 3)
    assert found.low is not None and 0 <= found.low < 0.5 and found.high == 1.0
    assert report.predictions[1].reference == REFERENCES[1]
    assert report.predictions[1].losses == {BASE: 2.0, TUNED: 2.0}
    assert report.seconds == {BASE: 1.5, TUNED: 1.5}


def test_broken_rules_are_counted_and_told(both: dict[str, Answers]) -> None:
    """By row and model."""
    report = build_report(HELD_OUT, both, CONFIG)
    assert report.metrics[TUNED]["violations"] == pytest.approx(1 / 3)
    assert report.metrics[BASE]["violations"] == 0
    assert report.predictions[1].broken_rules == {TUNED: {"banned_phrase": "banned phrase 'cheap'"}}


def test_the_picture_test(both: dict[str, Answers]) -> None:
    """Own pictures against others', row by row; only for models that took it."""
    report = build_report(HELD_OUT, both, CONFIG)
    assert set(report.picture_test) == {TUNED}
    seen = report.picture_test[TUNED]
    first, second = (report.predictions[row].swapped[TUNED] for row in (0, 2))
    assert (first.row_id, second.row_id) == ("r2", "r1")
    assert first.score == pytest.approx(0.2) and second.score == 1.0
    assert seen and seen.rows == 2 and seen.mean == pytest.approx(0.4)
    assert report.predictions[1].swapped == {}


def test_differences_are_paired(both: dict[str, Answers]) -> None:
    """None if a model is missing."""
    report = build_report(HELD_OUT, both, CONFIG)
    gain = report.difference(TUNED, BASE)
    assert gain and gain.mean == pytest.approx(5 / 6)
    assert report.difference(TUNED, "champion") is None


def test_a_cut_text_breaks_a_rule(both: dict[str, Answers]) -> None:
    """Whatever it says; it is counted, and known when the answers are read back."""
    both[TUNED] = replace(both[TUNED], cut={2})
    report = build_report(HELD_OUT, both, CONFIG)
    assert report.metrics[TUNED]["violations"] == pytest.approx(2 / 3)
    assert "max_new_tokens" in report.predictions[2].broken_rules[TUNED]["cut"]
    assert (report.cut_rows(BASE), report.cut_rows(TUNED)) == (0, 1)
    assert answers_in(report) == both


def test_a_group_counts_once(both: dict[str, Answers]) -> None:
    """In the metric as in its interval and in the difference: they cannot contradict."""
    held_out = replace(HELD_OUT, groups=["g0", "g1", "g1"])
    report = build_report(held_out, both, CONFIG)
    expected = pytest.approx((1 + (0.5 + 1) / 2) / 2)
    assert report.metrics[TUNED]["rouge_l"] == expected
    found, gain = report.intervals[TUNED]["rouge_l"], report.difference(TUNED, BASE)
    assert found.mean == expected and (found.groups, found.rows) == (2, 3)
    assert gain and gain.mean == expected and gain.groups == report.groups == 2
    assert report.metrics[TUNED]["answer_loss"] == pytest.approx((1 + 2.5) / 2)
    assert report.metrics[TUNED]["violations"] == pytest.approx(0.25)


def test_rows_that_share_something_with_training_stand_apart(both: dict[str, Answers]) -> None:
    """With their own scores; without such rows there is nothing to compare."""
    report = build_report(HELD_OUT, both, CONFIG)
    shared, others = report.by_shared()
    assert report.shared_rows == 1 == shared.rows and others.rows == 2
    assert shared.scores[TUNED] == pytest.approx(0.5) and others.scores[TUNED] == 1.0
    clean = build_report(replace(HELD_OUT, shared_with_train=[""] * 3), both, CONFIG)
    assert clean.shared_rows == 0 and [each.rows for each in clean.by_shared()] == [3]


def test_a_loss_that_is_not_a_number(both: dict[str, Answers]) -> None:
    """Is missing from the intervals, and read back as what it was."""
    both[TUNED] = answers(both[TUNED].texts, losses=[1.0, math.nan, math.inf])
    report = build_report(HELD_OUT, both, CONFIG)
    assert math.isnan(report.metrics[TUNED]["answer_loss"])
    assert math.isnan(report.metrics[TUNED]["perplexity"])
    assert "answer_loss" not in report.intervals[TUNED]
    text = report.model_dump_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = EvaluationReport.model_validate_json(text)
    assert repr(back) == repr(report)


def test_scores_by_category(both: dict[str, Answers]) -> None:
    """The largest first."""
    home, light = build_report(HELD_OUT, both, CONFIG).categories
    assert (home.category, home.rows, home.scores[TUNED]) == ("Home", 2, 1.0)
    assert (light.category, light.rows) == ("Light", 1)
    assert light.scores == {BASE: 0.0, TUNED: pytest.approx(0.5)}


def test_another_model_can_be_added_later(both: dict[str, Answers]) -> None:
    """What the others said is read back, and scores as before."""
    report = build_report(HELD_OUT, both, CONFIG)
    assert answers_in(report) == both
    merged = {**answers_in(report), "merged": answers(REFERENCES)}
    more = build_report(HELD_OUT, merged, CONFIG)
    assert {name: more.metrics[name] for name in both} == report.metrics
    assert more.metrics["merged"]["rouge_l"] == 1.0


def test_every_prediction_is_in_the_table(both: dict[str, Answers]) -> None:
    """As columns of equal length."""
    table = build_report(HELD_OUT, both, CONFIG).table()
    assert {len(column) for column in table.values()} == {3}
    assert table[TUNED] == both[TUNED].texts and table["field_name"] == ["n0", "n1", "n2"]
    assert table["tuned_broken_rules"] == ["", "banned_phrase: banned phrase 'cheap'", ""]
    assert table["tuned_other_picture"] == ["r2", None, "r1"]


@pytest.mark.parametrize(
    ("references", "metric"),
    [
        (["A mug for tea."], "rouge_l"),
        (["这款青花瓷杯适合早晨的第一杯茶"], "chrf_row"),
        (["แก้วกาแฟเซรามิก"], "chrf_row"),
        (["머그잔은 튼튼합니다"], "rouge_l"),
        (["12 34"], "rouge_l"),
        (["Mug 杯", "A mug for tea."], "rouge_l"),
    ],
)
def test_letters_count_where_words_are_not_split(references: list[str], metric: str) -> None:
    """Korean splits its words; a few signs in a Latin text change nothing."""
    assert choose_lead_metric("auto", references) == metric
    assert choose_lead_metric("chrf_row", references) == "chrf_row"


def test_the_lead_metric_is_what_rows_are_scored_by(both: dict[str, Answers]) -> None:
    """As configured."""
    config = CONFIG.model_copy(update={"lead_metric": "chrf_row"})
    report = build_report(HELD_OUT, both, config)
    assert report.lead_metric == "chrf_row" and report.predictions[0].scores[TUNED] == 100.0
