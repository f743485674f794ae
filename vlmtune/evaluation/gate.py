"""The gate: what is asked of a model before it goes out, as one pure function.

It is called on the tuned model after the evaluation, and again on the merged model, whose texts
are what users get: then it must also score no worse than the tuned model it was made of.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from vlmtune.config.evaluation import GateConfig, Outcome
from vlmtune.errors import GateFailed
from vlmtune.evaluation.intervals import CONFIDENCE, Interval
from vlmtune.evaluation.results import BASE, CHAMPION, MERGED, TUNED, EvaluationReport

Verdict = Literal["promoted", "kept_back", "failed"]
VIOLATIONS = "violations"  # metric: share of rows that break a rule of the trade


class GateCheck(BaseModel):
    """One thing that is asked of a model.

    Attributes:
        name: what is asked, as in `gate.outcomes`.
        wanted, found: in words.
        met: None if it could not be measured, which is never a pass.
        otherwise: what becomes of a model that does not meet it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    wanted: str
    found: str
    met: bool | None
    otherwise: Outcome


class PromotionDecision(BaseModel):
    """What becomes of a model, and why.

    Attributes:
        subject: the model that was judged: `tuned` or `merged`.
        verdict: promoted; kept_back, and nothing is published; or failed, and the run fails.
        checks: all that was asked.
        champion: number of the version that it was compared with.
        note: what should be known of the rows that it rests on; empty as a rule.
        adapter_files: name -> SHA-256 of the adapter's files, as they were judged.
    """

    model_config = ConfigDict(frozen=True)

    subject: str
    verdict: Verdict
    checks: list[GateCheck]
    champion: str | None = None
    note: str = ""
    adapter_files: dict[str, str] = {}

    @property
    def reasons(self) -> list[str]:
        """One line for each check that was not met."""
        return [
            f"{check.name}: {check.wanted}, found {check.found}"
            for check in self.checks
            if not check.met
        ]

    def describe(self) -> str:
        """The verdict, its reasons and the note in one line."""
        said = [*self.reasons, *([self.note] if self.note else [])]
        words = self.verdict.replace("_", " ")
        return f"{words} ({'; '.join(said)})" if said else words

    def of_files(self, adapter_files: dict[str, str]) -> Self:
        """The same decision, bound to the files that it is about."""
        return self.model_copy(update={"adapter_files": adapter_files})

    def require_not_failed(self) -> None:
        """Stop a run whose model has failed. Called by the step after the one that judged: a step
        that raises loses what it found.

        Raises:
            GateFailed: with the reasons.
        """
        if self.verdict == "failed":
            raise GateFailed(
                f"the gate failed the {self.subject} model: {'; '.join(self.reasons)}.",
                "See report.html; what is asked stands in the config's section gate.",
            )


def decide(
    report: EvaluationReport, gate: GateConfig, subject: str = TUNED, champion: str | None = None
) -> PromotionDecision:
    """Judge a model by what an evaluation found.

    Args:
        subject: `tuned`, or `merged` for the stricter second look.
        champion: number of the version that the report calls the champion.
    """
    checks = list(_checks(report, gate, subject))
    unmet = {check.otherwise for check in checks if not check.met}
    verdict: Verdict = (
        "failed" if "failed" in unmet else "kept_back" if "kept_back" in unmet else "promoted"
    )
    return PromotionDecision(
        subject=subject, verdict=verdict, checks=checks, champion=champion, note=_note(report)
    )


def _note(report: EvaluationReport) -> str:
    if not report.shared_rows:
        return ""
    return (
        f"{report.shared_rows} of {report.rows} evaluated rows share a description or an image "
        "with training rows"
    )


def _checks(report: EvaluationReport, gate: GateConfig, subject: str) -> Iterator[GateCheck]:
    yield from _not_finite(report, gate, subject)
    yield (changes := _not_inert(report, gate, subject))
    if changes.met is False:
        return  # it is the base model: its scores say nothing of the training
    yield _enough_groups(report, gate)
    for metric, least in gate.floors.items():
        yield _floor(report, gate, subject, metric, least)
    if gate.beat_base is not None:
        yield _better(report, gate, subject, BASE, gate.beat_base)
    if gate.beat_champion is not None and CHAMPION in report.metrics:
        yield _better(report, gate, subject, CHAMPION, gate.beat_champion)
    if gate.picture_margin is not None:
        yield _sees(report, gate, subject)
    if gate.max_violations is not None:
        yield _keeps_the_rules(report, gate, subject)
    if subject == MERGED:
        yield _as_tested(report, gate)


def _floor(
    report: EvaluationReport, gate: GateConfig, subject: str, metric: str, least: float
) -> GateCheck:
    found = report.metrics.get(subject, {}).get(metric)
    wanted = f"{metric} of at least {least:g}"
    return _check(gate, "floor", wanted, found, lambda value: value >= least)


def _not_inert(report: EvaluationReport, gate: GateConfig, subject: str) -> GateCheck:
    pairs = [(row.texts.get(subject), row.texts.get(BASE)) for row in report.predictions]
    told = pairs and all(text is not None for pair in pairs for text in pair)
    changed = sum(ours != theirs for ours, theirs in pairs) if told else None
    return _check(gate, "inert", "other descriptions than the base's", changed, lambda n: n > 0)


def _not_finite(report: EvaluationReport, gate: GateConfig, subject: str) -> Iterator[GateCheck]:
    """Scores of texts are finite even where the model computes nothing but NaN."""
    metrics = report.metrics.get(subject, {})
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        yield GateCheck(
            name="finite",
            wanted="finite figures only",
            found=f"NaN or infinity in {', '.join(broken)}",
            met=None,
            otherwise=gate.outcomes.missing,
        )


def _enough_groups(report: EvaluationReport, gate: GateConfig) -> GateCheck:
    enough = report.groups >= gate.min_groups
    return GateCheck(
        name="groups",
        wanted=f"at least {gate.min_groups} held-out groups",
        found=f"{report.groups}" if enough else f"{report.groups}: not enough held-out groups",
        met=enough,
        otherwise=gate.outcomes.groups,
    )


def _better(
    report: EvaluationReport, gate: GateConfig, subject: str, other: str, share: float
) -> GateCheck:
    margin = share * report.scale
    wanted = f"{report.lead_metric} surely better than the {other}'s"
    wanted += f" by more than {margin:g}" if margin else ""
    difference = report.difference(subject, other)
    return _check(gate, other, wanted, difference, _surely_above(margin))


def _sees(report: EvaluationReport, gate: GateConfig, subject: str) -> GateCheck:
    margin = (gate.picture_margin or 0.0) * report.scale
    wanted = f"{report.lead_metric} surely worse with other rows' pictures"
    wanted += f" by more than {margin:g}" if margin else ""
    return _check(gate, "picture", wanted, report.picture_test.get(subject), _surely_above(margin))


def _keeps_the_rules(report: EvaluationReport, gate: GateConfig, subject: str) -> GateCheck:
    most = gate.max_violations or 0.0
    found = report.metrics.get(subject, {}).get(VIOLATIONS)
    wanted = f"at most {most:.1%} of rows that break a rule"
    return _check(gate, "rules", wanted, found, lambda share: share <= most)


def _as_tested(report: EvaluationReport, gate: GateConfig) -> GateCheck:
    margin = gate.merged_margin * report.scale
    wanted = f"{report.lead_metric} at most {margin:g} below the tuned model's"
    difference = report.difference(MERGED, TUNED)
    return _check(gate, "merged", wanted, difference, _surely_above(-margin))


def _check(
    gate: GateConfig, name: str, wanted: str, found: Any, meets: Callable[[Any], bool]
) -> GateCheck:
    """What could not be measured is judged by `gate.outcomes.missing`."""
    missing = found is None or (isinstance(found, float) and not math.isfinite(found))
    return GateCheck(
        name=name,
        wanted=wanted,
        found="no such figure" if missing else _in_words(found),
        met=None if missing else meets(found),
        otherwise=gate.outcomes.missing if missing else getattr(gate.outcomes, name),
    )


def _surely_above(margin: float) -> Callable[[Interval], bool]:
    """Whether the lower end lies above; an interval without ends says nothing."""
    return lambda found: found.low is not None and found.low > margin


def _in_words(found: Any) -> str:
    if isinstance(found, Interval):
        ends = "unknown" if found.low is None else f"{found.low:+.4f} to {found.high:+.4f}"
        return (
            f"{found.mean:+.4f} ({CONFIDENCE:.0%} interval {ends}, decided one-sided by its lower "
            f"end; {found.groups} groups, {found.rows} rows)"
        )
    return f"{found:.4f}" if isinstance(found, float) else f"{found} rows"
