"""From texts to scores: by metric, by row, by category, with confidence intervals."""

import math
import re
import statistics
from dataclasses import dataclass, field
from typing import Any

from vlmtune.catalog.catalog import ROW_ID
from vlmtune.config.data import DESCRIPTION
from vlmtune.config.evaluation import EvaluationConfig
from vlmtune.evaluation.gate import VIOLATIONS
from vlmtune.evaluation.intervals import Interval, interval, paired
from vlmtune.evaluation.metrics import UNSPACED, score, score_by_row
from vlmtune.evaluation.results import CategoryScores, EvaluationReport, Prediction, Swapped
from vlmtune.evaluation.rules import Answer, broken_rules

ROUGE_L, CHRF_ROW, ANSWER_LOSS, PERPLEXITY = "rouge_l", "chrf_row", "answer_loss", "perplexity"
RANGES = {
    ROUGE_L: (0.0, 1.0),
    CHRF_ROW: (0.0, 100.0),
    ANSWER_LOSS: (0.0, math.inf),
    VIOLATIONS: (0.0, 1.0),
}
CATEGORY = "category"
UNSPACED_SHARE = 0.3  # of the letters: above it words are mostly not split by spaces


@dataclass(frozen=True)
class Answers:
    """What one model said of the held-out rows.

    Attributes:
        texts: one description a row.
        losses: mean loss of each reference's tokens, in nats.
        cut: places of the rows whose description was cut by `max_new_tokens`.
        swapped: place of a row -> description with another row's picture.
        seconds: to describe all rows.
    """

    texts: list[str]
    losses: list[float]
    cut: set[int] = field(default_factory=set)
    swapped: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class HeldOut:
    """What descriptions are held against.

    Attributes:
        records: the catalog's texts of each row.
        groups, shared_with_train: of each row, as in `Examples`.
        prompts: texts of each row's prompt.
        rows: held-out rows there are, those that were not asked about included.
        partners: place of a row -> place of the row whose picture it was shown instead.
    """

    records: list[dict[str, Any]]
    groups: list[str]
    shared_with_train: list[str]
    prompts: list[list[str]]
    rows: int
    partners: dict[int, int] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        """The catalog's own descriptions."""
        return [record[DESCRIPTION].strip() for record in self.records]

    @property
    def fields(self) -> list[dict[str, str]]:
        """Each row's fields, such as name and category."""
        return [
            {key: value for key, value in record.items() if key not in (ROW_ID, DESCRIPTION)}
            for record in self.records
        ]


def build_report(
    held_out: HeldOut, answers: dict[str, Answers], config: EvaluationConfig
) -> EvaluationReport:
    """Score the texts of each model against the catalog's own descriptions.

    Args:
        answers: model name -> what it said.
    """
    lead = choose_lead_metric(config.lead_metric, held_out.references)
    scored = {name: _score_model(held_out, each, config, lead) for name, each in answers.items()}
    return EvaluationReport(
        rows=len(held_out.records),
        held_out_rows=held_out.rows,
        lead_metric=lead,
        metrics={name: each.metrics for name, each in scored.items()},
        intervals={name: each.intervals for name, each in scored.items()},
        picture_test={
            name: _picture_test(scored[name], held_out.groups)
            for name, each in answers.items()
            if each.swapped
        },
        categories=_by_category(held_out, {name: each.lead for name, each in scored.items()}),
        seconds={name: each.seconds for name, each in answers.items()},
        predictions=_predictions(held_out, answers, scored),
    )


def answers_in(report: EvaluationReport) -> dict[str, Answers]:
    """What the models of a report said, to be scored again beside another one."""
    rows = report.predictions
    return {
        name: Answers(
            texts=[row.texts[name] for row in rows],
            losses=[row.losses[name] for row in rows],
            cut={place for place, row in enumerate(rows) if row.is_cut(name)},
            swapped={
                place: row.swapped[name].text
                for place, row in enumerate(rows)
                if name in row.swapped
            },
            seconds=report.seconds[name],
        )
        for name in report.models
    }


def choose_lead_metric(configured: str, references: list[str]) -> str:
    """ROUGE-L counts words, so it says nothing where words are not split by spaces."""
    if configured != "auto":
        return configured
    letters = [letter for text in references for letter in text if letter.isalpha()]
    unspaced = sum(bool(re.match(f"[{UNSPACED}]", letter)) for letter in letters)
    return CHRF_ROW if letters and unspaced / len(letters) > UNSPACED_SHARE else ROUGE_L


@dataclass(frozen=True)
class _Scored:
    """One model's scores; lists run over the rows."""

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    lead: list[float]
    swapped: dict[int, float]
    broken: list[dict[str, str]]


def _score_model(
    held_out: HeldOut, answers: Answers, config: EvaluationConfig, lead: str
) -> _Scored:
    references, fields = held_out.references, held_out.fields
    broken = [
        broken_rules(Answer(text, reference, known, prompt, place in answers.cut), config.rules)
        for place, (text, reference, known, prompt) in enumerate(
            zip(answers.texts, references, fields, held_out.prompts, strict=True)
        )
    ]
    by_row = {
        ROUGE_L: score_by_row(ROUGE_L, answers.texts, references),
        CHRF_ROW: score_by_row(CHRF_ROW, answers.texts, references),
        ANSWER_LOSS: answers.losses,
        VIOLATIONS: [float(bool(problems)) for problems in broken],
    }
    intervals = {
        metric: found.within(*RANGES[metric])
        for metric, values in by_row.items()
        if (found := interval(values, held_out.groups)) is not None
    }
    means = {
        metric: intervals[metric].mean if metric in intervals else math.nan for metric in by_row
    }
    places = list(answers.swapped)
    swapped = score_by_row(
        lead, [answers.swapped[place] for place in places], [references[place] for place in places]
    )
    return _Scored(
        metrics={
            **score(answers.texts, references, fields, config.copied_fields, config.terms),
            **means,
            PERPLEXITY: math.exp(min(means[ANSWER_LOSS], 700.0)),
        },
        intervals=intervals,
        lead=by_row[lead],
        swapped=dict(zip(places, swapped, strict=True)),
        broken=broken,
    )


def _picture_test(scored: _Scored, groups: list[str]) -> Interval | None:
    """How much better a model scores with a row's own picture than with another one."""
    own = [scored.lead[place] for place in scored.swapped]
    return paired(own, list(scored.swapped.values()), [groups[place] for place in scored.swapped])


def _predictions(
    held_out: HeldOut, answers: dict[str, Answers], scored: dict[str, _Scored]
) -> list[Prediction]:
    records, fields, references = held_out.records, held_out.fields, held_out.references
    return [
        Prediction(
            row_id=record[ROW_ID],
            group=held_out.groups[place],
            shared_with_train=held_out.shared_with_train[place],
            fields=fields[place],
            reference=references[place],
            texts={name: each.texts[place] for name, each in answers.items()},
            scores={name: each.lead[place] for name, each in scored.items()},
            losses={name: each.losses[place] for name, each in answers.items()},
            broken_rules={
                name: each.broken[place] for name, each in scored.items() if each.broken[place]
            },
            swapped={
                name: Swapped(
                    row_id=records[held_out.partners[place]][ROW_ID],
                    text=each.swapped[place],
                    score=scored[name].swapped[place],
                )
                for name, each in answers.items()
                if place in each.swapped
            },
        )
        for place, record in enumerate(records)
    ]


def _by_category(held_out: HeldOut, lead: dict[str, list[float]]) -> list[CategoryScores]:
    places: dict[str, list[int]] = {}
    for place, fields in enumerate(held_out.fields):
        if fields.get(CATEGORY):
            places.setdefault(fields[CATEGORY], []).append(place)
    return [
        CategoryScores(
            category=category,
            rows=len(rows),
            scores={
                name: statistics.fmean(each[row] for row in rows) for name, each in lead.items()
            },
        )
        for category, rows in sorted(places.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    ]
