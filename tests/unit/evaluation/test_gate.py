"""The gate, on every kind of model: what goes out, what stays, what fails the run."""

import itertools
import math
from typing import Any

import pytest

from vlmtune.config.evaluation import GateConfig
from vlmtune.errors import GateFailed
from vlmtune.evaluation.gate import PromotionDecision, decide
from vlmtune.evaluation.intervals import Interval
from vlmtune.evaluation.results import (
    BASE,
    CHAMPION,
    MERGED,
    TUNED,
    EvaluationReport,
    Prediction,
)

GATE = GateConfig(floors={"rouge_l": 0.5})
ROWS = 40
SEES = Interval(mean=0.3, low=0.2, high=0.4, groups=ROWS, rows=ROWS)


def report(
    scores: dict[str, float],
    violations: float | None = 0.0,
    sees: Interval | None = SEES,
    same_texts: bool = False,
    spread: float = 0.05,
    rows_each: int = 1,
) -> EvaluationReport:
    """Models that score so much in the mean, with some spread from row to row."""
    predictions = [
        Prediction(
            row_id=str(row),
            group=str(row // rows_each),
            fields={},
            reference="r",
            texts={name: "same" if same_texts else f"{name} {row}" for name in scores},
            scores={
                name: mean + spread * math.sin(row * (place + 2))
                for place, (name, mean) in enumerate(scores.items())
            },
        )
        for row in range(ROWS)
    ]
    share = {} if violations is None else {"violations": violations}
    return EvaluationReport(
        rows=ROWS,
        held_out_rows=ROWS,
        metrics={name: {"rouge_l": mean, **share} for name, mean in scores.items()},
        picture_test={TUNED: sees, MERGED: sees},
        seconds={},
        predictions=predictions,
    )


def judged(found: EvaluationReport, gate: GateConfig = GATE, **options: Any) -> PromotionDecision:
    """The decision, which is the same each time."""
    decision = decide(found, gate, **options)
    assert decide(found, gate, **options) == decision
    return decision


def unmet(decision: PromotionDecision) -> list[str]:
    """Names of the checks that were not met."""
    return [check.name for check in decision.checks if not check.met]


def test_a_good_model_is_promoted() -> None:
    """All checks are met, and said."""
    decision = judged(report({BASE: 0.3, TUNED: 0.9}))
    assert decision.verdict == "promoted" and decision.reasons == []
    assert {check.name for check in decision.checks} == {
        *("inert", "groups", "floor", "base", "picture", "rules")
    }
    assert decision.describe() == "promoted"


@pytest.mark.parametrize(
    ("found", "name", "verdict"),
    [
        (report({BASE: 0.3, TUNED: 0.49}), "floor", "failed"),
        (report({BASE: 0.9, TUNED: 0.9}), "base", "kept_back"),
        (report({BASE: 0.9, TUNED: 0.8}), "base", "kept_back"),
        (report({BASE: 0.89, TUNED: 0.9}, spread=0.2), "base", "kept_back"),  # not surely
        (report({BASE: 0.3, TUNED: 0.9, CHAMPION: 0.9}), "champion", "kept_back"),
        (report({BASE: 0.3, TUNED: 0.9, CHAMPION: 0.95}), "champion", "kept_back"),
        (report({BASE: 0.3, TUNED: 0.9}, violations=0.11), "rules", "kept_back"),
        (
            report(
                {BASE: 0.3, TUNED: 0.9},
                sees=Interval(mean=0.1, low=-0.1, high=0.2, groups=9, rows=9),
            ),
            "picture",
            "kept_back",
        ),
        (
            report({BASE: 0.3, TUNED: 0.9}, sees=Interval(mean=0, low=0, high=0, groups=9, rows=9)),
            "picture",
            "kept_back",
        ),
    ],
)
def test_one_fault(found: EvaluationReport, name: str, verdict: str) -> None:
    """One check is not met: it is named, and its outcome is the table's."""
    decision = judged(found)
    assert unmet(decision) == [name] and decision.verdict == verdict
    assert (
        decision.reasons[0].startswith(f"{name}: ") and decision.reasons[0] in decision.describe()
    )


def test_a_champion_that_is_beaten() -> None:
    """The new model takes its place."""
    decision = judged(report({BASE: 0.3, TUNED: 0.9, CHAMPION: 0.8}))
    assert decision.verdict == "promoted"
    assert "champion" in [check.name for check in decision.checks]


def test_a_tie_with_the_champion() -> None:
    """The same scores on every row are not better."""
    tie = report({BASE: 0.3, TUNED: 0.9, CHAMPION: 0.9}, spread=0.0)
    assert unmet(judged(tie)) == ["champion"]


def test_an_inert_adapter() -> None:
    """It writes what the base writes: that alone counts, whatever the base's scores are."""
    for score in (0.1, 0.9):
        decision = judged(report({BASE: score, TUNED: score}, same_texts=True))
        assert [check.name for check in decision.checks] == ["inert"]
        assert unmet(decision) == ["inert"] and decision.verdict == "kept_back"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"metrics": {BASE: {}, TUNED: {"violations": 0.0}}}, "floor"),
        ({"metrics": {BASE: {}, TUNED: {"rouge_l": 0.9}}}, "rules"),
        ({"picture_test": {}}, "picture"),
        ({"picture_test": {TUNED: None}}, "picture"),
    ],
)
def test_a_missing_figure_is_never_a_pass(changes: dict[str, Any], name: str) -> None:
    """Whatever is missing: the run fails, unless the table says otherwise."""
    found = report({BASE: 0.3, TUNED: 0.9}).model_copy(update=changes)
    decision = judged(found)
    assert unmet(decision) == [name] and decision.verdict == "failed"
    assert [check.met for check in decision.checks if check.name == name] == [None]
    lenient = GATE.model_copy(
        update={"outcomes": GATE.outcomes.model_copy(update={"missing": "kept_back"})}
    )
    assert judged(found, lenient).verdict == "kept_back"


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("metric", ["rouge_l", "answer_loss", "violations"])
def test_what_is_not_finite_fails(metric: str, value: float) -> None:
    """Whatever metric it is, asked for or not; another model's is no matter."""
    found = report({BASE: 0.3, TUNED: 0.9})
    metrics = {name: {**found.metrics[name], metric: value} for name in (BASE, TUNED)}
    decision = judged(found.model_copy(update={"metrics": metrics}))
    assert decision.checks[0].name == "finite" and metric in decision.checks[0].found
    assert decision.verdict == "failed"
    base_only = {**metrics, TUNED: found.metrics[TUNED]}
    assert judged(found.model_copy(update={"metrics": base_only})).verdict == "promoted"


def test_too_few_groups() -> None:
    """40 rows of 20 products are 20 products, and as many rows more change nothing."""
    decision = judged(report({BASE: 0.3, TUNED: 0.9}, rows_each=2))
    assert unmet(decision) == ["groups"] and decision.verdict == "kept_back"
    assert "20: not enough held-out groups" in decision.describe()
    assert judged(report({BASE: 0.3, TUNED: 0.9}, rows_each=1)).verdict == "promoted"
    fewer = GATE.model_copy(update={"min_groups": 20})
    assert judged(report({BASE: 0.3, TUNED: 0.9}, rows_each=2), fewer).verdict == "promoted"


def test_what_a_difference_rests_on() -> None:
    """Groups, rows, confidence and side are said."""
    decision = judged(report({BASE: 0.3, TUNED: 0.9}, rows_each=2))
    (base,) = (check for check in decision.checks if check.name == "base")
    assert "95% interval" in base.found and "one-sided" in base.found
    assert "20 groups, 40 rows" in base.found


def test_rows_that_share_something_with_training_are_said() -> None:
    """In the decision's one line, promoted or not."""
    found = report({BASE: 0.3, TUNED: 0.9})
    first, *others = found.predictions
    leaked = [first.model_copy(update={"shared_with_train": "image"}), *others]
    said = judged(found.model_copy(update={"predictions": leaked})).describe()
    assert said.startswith("promoted (1 of 40 evaluated rows share")


@pytest.mark.parametrize("changes", [{"predictions": []}, {"metrics": {}}])
def test_nothing_measured_at_all(changes: dict[str, Any]) -> None:
    """No rows, or no metrics, promote nothing."""
    assert judged(report({BASE: 0.3, TUNED: 0.9}).model_copy(update=changes)).verdict == "failed"


def test_one_row_is_not_enough() -> None:
    """There is no interval: better on one row may be luck."""
    found = report({BASE: 0.3, TUNED: 0.9})
    alone = found.model_copy(update={"predictions": found.predictions[:1]})
    assert unmet(judged(alone, GATE.model_copy(update={"min_groups": 0}))) == ["base"]


def test_margins() -> None:
    """Better, but not by as much as is asked."""
    found = report({BASE: 0.3, TUNED: 0.9, CHAMPION: 0.8})
    for key, name in (("beat_base", "base"), ("beat_champion", "champion")):
        assert unmet(judged(found, GATE.model_copy(update={key: 0.7}))) == [name]
    assert unmet(judged(found, GATE.model_copy(update={"picture_margin": 0.25}))) == ["picture"]


def test_margins_are_shares_of_the_scale() -> None:
    """chrF goes up to 100: two hundredths of it are 2."""
    found = report({BASE: 30, TUNED: 90}, sees=Interval(mean=2, low=1.9, high=3, groups=9, rows=9))
    letters = found.model_copy(update={"lead_metric": "chrf_row"})
    gate = GateConfig(picture_margin=0.02)
    assert unmet(judged(letters, gate)) == ["picture"]
    assert unmet(judged(letters, gate.model_copy(update={"picture_margin": 0.018}))) == []


def test_what_is_not_asked_is_not_checked() -> None:
    """Each check can be switched off, but an inert adapter is always one."""
    off = GateConfig(beat_base=None, beat_champion=None, picture_margin=None, max_violations=None)
    decision = judged(report({BASE: 0.9, TUNED: 0.1}, violations=None, sees=None), off)
    assert [check.name for check in decision.checks] == ["inert", "groups"]
    assert decision.verdict == "promoted"


def test_the_merged_model_must_be_as_good_as_what_it_was_made_of() -> None:
    """All checks again, and one more."""
    good = judged(report({BASE: 0.3, TUNED: 0.9, MERGED: 0.89}), subject=MERGED)
    assert good.verdict == "promoted" and good.checks[-1].name == "merged"
    worse = judged(report({BASE: 0.3, TUNED: 0.9, MERGED: 0.8}), subject=MERGED)
    assert unmet(worse) == ["merged"] and worse.verdict == "failed"
    broken = judged(report({BASE: 0.3, TUNED: 0.9, MERGED: 0.1}), subject=MERGED)
    assert unmet(broken) == ["floor", "base", "merged"] and broken.verdict == "failed"


def test_the_worst_outcome_counts() -> None:
    """In every combination of outcomes and faults."""
    found = report({BASE: 0.9, TUNED: 0.4}, violations=0.5)
    names = ("floor", "base", "rules")
    for outcomes in itertools.product(("failed", "kept_back"), repeat=3):
        table = GATE.outcomes.model_copy(update=dict(zip(names, outcomes, strict=True)))
        decision = judged(found, GATE.model_copy(update={"outcomes": table}))
        assert unmet(decision) == list(names)
        assert decision.verdict == ("failed" if "failed" in outcomes else "kept_back")


def test_a_failed_model_stops_the_run() -> None:
    """With an exit code of its own, and the reasons."""
    with pytest.raises(GateFailed, match=r"floor: rouge_l of at least 0.5, found 0.4") as raised:
        judged(report({BASE: 0.3, TUNED: 0.4})).require_not_failed()
    assert raised.value.exit_code == 3
    judged(report({BASE: 0.9, TUNED: 0.9})).require_not_failed()
