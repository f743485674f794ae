"""The evaluation as one web page that a shop's merchandiser can read."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmtune.catalog.contact_sheet import data_uri
from vlmtune.evaluation.gate import PromotionDecision
from vlmtune.evaluation.intervals import CONFIDENCE, Interval
from vlmtune.evaluation.metrics import MetricMeaning, meaning_of
from vlmtune.evaluation.results import (
    BASE,
    CHAMPION,
    MERGED,
    TUNED,
    EvaluationReport,
    Prediction,
)
from vlmtune.pages import (
    BOTTOM,
    LEFT,
    PLOT_HEIGHT,
    PLOT_WIDTH,
    RIGHT,
    TOP,
    page_environment,
    round_ticks,
    scale,
)

TEMPLATES = Path(__file__).resolve().parent / "templates"
MODEL_NAMES = {
    BASE: "Base model",
    TUNED: "Fine-tuned model",
    CHAMPION: "Champion",
    MERGED: "Merged model",
}
VERDICTS = {
    "promoted": "The gate lets this model pass",
    "kept_back": "The gate keeps this model back: nothing is published",
    "failed": "The gate fails this model",
}

# What keeps the page small enough to mail.
CARDS_AT_EACH_END = 12  # so at most 24 pictures
THUMBNAIL_SIDE = 160  # pixels
TABLE_ROWS = 1000
HEADLINES = 4
PLOTTED_POINTS = 400
CATEGORIES_SHOWN = 30


def render_report(
    report: EvaluationReport,
    pictures: Callable[[str], bytes | None],
    title: str,
    facts: dict[str, str],
    loss_history: list[dict[str, Any]] | None,
    decision: PromotionDecision | None = None,
) -> str:
    """Write the evaluation as one self-contained HTML page.

    Args:
        report: what the evaluation found.
        pictures: row id -> encoded picture, or None if the row has none; asked for at most 24
            rows. A picture that cannot be read is left out.
        title: the page's heading.
        facts: what to tell about the run (base model, catalog ...), label -> value.
        loss_history: the Trainer's `log_history`, whose entries with `loss` or `eval_loss` are
            plotted; None draws no plot.
        decision: what the gate says of it.

    Returns:
        HTML in which every text of the catalog and of the models is escaped.
    """
    ordered = sorted(report.predictions, key=_tuned_score)
    middle = math.ceil(len(ordered) / 2)  # no row is shown among both the weakest and the best
    weakest = ordered[:middle][:CARDS_AT_EACH_END]
    strongest = ordered[middle:][::-1][:CARDS_AT_EACH_END]
    return (
        page_environment(TEMPLATES)
        .get_template("report.html.j2")
        .render(
            title=title,
            facts=facts,
            report=report,
            models={model: _model_name(model) for model in report.metrics},
            headlines=_compare_metrics(report, _headline_metrics(report)),
            comparisons=_compare_metrics(report, _all_metrics(report)),
            weakest=[_card(prediction, pictures) for prediction in weakest],
            strongest=[_card(prediction, pictures) for prediction in strongest],
            table=report.predictions[:TABLE_ROWS],
            plot=_plot_loss(loss_history) if loss_history else None,
            decision=decision,
            verdicts=VERDICTS,
            lead=meaning_of(report.lead_metric).label,
            categories_shown=CATEGORIES_SHOWN,
            confidence=f"{CONFIDENCE:.0%}",
            one_sided=f"{(1 + CONFIDENCE) / 2:.1%}",
        )
    )


def _model_name(model: str) -> str:
    return MODEL_NAMES.get(model, f"{model.capitalize()} model")


def _tuned_score(prediction: Prediction) -> float:
    return prediction.scores.get(TUNED, 0.0)


# --- Metrics ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One metric of all models: the text to print and the length of the bar, 0 to 100; of the
    tuned model also the range that its value surely lies in."""

    meaning: MetricMeaning
    values: dict[str, str]
    bars: dict[str, float]
    gain: str
    is_better: bool
    range: str = ""


def _all_metrics(report: EvaluationReport) -> list[str]:
    names = [name for metrics in report.metrics.values() for name in metrics]
    return list(dict.fromkeys(names))


def _headline_metrics(report: EvaluationReport) -> list[str]:
    names = _all_metrics(report)
    asked_by_the_shop = [
        name
        for name in names
        if name.startswith(("copied_", "term_")) and not name.endswith("_any")
    ]
    known = [name for name in ("chrf", "bleu", "exact") if name in names]
    return [*(n for n in names if n == "rouge_l"), *asked_by_the_shop, *known][:HEADLINES]


def _compare_metrics(report: EvaluationReport, names: list[str]) -> list[Comparison]:
    return [_compare(report, name) for name in names]


def _compare(report: EvaluationReport, name: str) -> Comparison:
    meaning = meaning_of(name)
    values = {model: metrics[name] for model, metrics in report.metrics.items() if name in metrics}
    gain = values[TUNED] - values[BASE] if {BASE, TUNED} <= values.keys() else 0.0
    return Comparison(
        meaning=meaning,
        values={model: meaning.show(value) for model, value in values.items()},
        bars={model: _bar_length(value / meaning.top) for model, value in values.items()},
        gain=_show_gain(meaning, gain),
        is_better=gain < 0 if meaning.less_is_better else gain > 0,
        range=_range(meaning, report.intervals.get(TUNED, {}).get(name)),
    )


def _range(meaning: MetricMeaning, found: Interval | None) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{meaning.show(found.low)} to {meaning.show(found.high)}"


def _bar_length(share: float) -> float:
    return round(100 * min(max(share, 0.0), 1.0), 1)


def _show_gain(meaning: MetricMeaning, gain: float) -> str:
    if meaning.is_share:
        return f"{100 * gain:+.1f} points"
    return f"{gain:+.{meaning.decimals}f}"


# --- Cards -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """One row with its picture as a data URI, or None."""

    prediction: Prediction
    picture: str | None


def _card(prediction: Prediction, pictures: Callable[[str], bytes | None]) -> Card:
    picture = pictures(prediction.row_id)
    return Card(prediction, data_uri(picture, THUMBNAIL_SIDE) if picture else None)


# --- Loss plot -------------------------------------------------------------------------------

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A line of the plot in SVG units, with the last value it stands for."""

    name: str
    css_class: str
    points: list[Point]
    last: float


@dataclass(frozen=True)
class LossPlot:
    """Everything the template needs to draw; ticks are (position, label)."""

    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    not_finite: int
    width: int = PLOT_WIDTH
    height: int = PLOT_HEIGHT
    left: int = LEFT
    right: int = PLOT_WIDTH - RIGHT
    bottom: int = PLOT_HEIGHT - BOTTOM


def _plot_loss(history: list[dict[str, Any]]) -> LossPlot | None:
    """The curves of training and held-out loss, or None if no finite loss was logged."""
    entries = [entry for entry in history if "loss" in entry or "eval_loss" in entry]
    train, held_out = _losses(entries, "loss"), _losses(entries, "eval_loss")
    finite = train + held_out
    if not finite:
        return None
    last_step = max(step for step, _ in finite) or 1
    lowest, highest = min(0.0, *(loss for _, loss in finite)), max(loss for _, loss in finite)
    y_ticks = round_ticks(lowest, highest)
    bottom, top = min(lowest, y_ticks[0]), max(highest, y_ticks[-1])

    def x(step: float) -> float:
        return scale(0, last_step, LEFT, PLOT_WIDTH - RIGHT, step)

    def y(loss: float) -> float:
        return scale(bottom, top, PLOT_HEIGHT - BOTTOM, TOP, loss)

    named = [("Training loss", "train", train), ("Held-out loss", "held-out", held_out)]
    return LossPlot(
        curves=[
            Curve(name, css_class, [(x(step), y(loss)) for step, loss in losses], losses[-1][1])
            for name, css_class, losses in named
            if losses
        ],
        x_ticks=[(x(step), f"{step:g}") for step in round_ticks(0, last_step)],
        y_ticks=[(y(loss), f"{loss:g}") for loss in y_ticks],
        not_finite=sum(not math.isfinite(entry.get("loss", 0.0)) for entry in entries),
    )


def _losses(entries: list[dict[str, Any]], key: str) -> list[Point]:
    """(step, loss) in the order of steps, thinned out; of a step logged twice the last counts."""
    by_step = {float(entry["step"]): float(entry[key]) for entry in entries if key in entry}
    points = sorted((step, loss) for step, loss in by_step.items() if math.isfinite(loss))
    stride = math.ceil(len(points) / PLOTTED_POINTS) or 1
    return points[::-stride][::-1]  # from the end, so that the last loss is always drawn
