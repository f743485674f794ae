"""What an evaluation found: plain, JSON-serialisable records."""

from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict

from vlmtune.evaluation.intervals import Interval, paired
from vlmtune.evaluation.rules import CUT

BASE, TUNED, CHAMPION, MERGED = "base", "tuned", "champion", "merged"
# NaN is no number of JSON: it is written as a text, and read as the number again.
RECORD = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class Swapped(BaseModel):
    """What a model wrote when it was shown another row's picture.

    Attributes:
        row_id: the row whose picture it was.
        text: what was written.
        score: of that text against the reference of the row itself, by the lead metric.
    """

    model_config = RECORD

    row_id: str
    text: str
    score: float


class Prediction(BaseModel):
    """One held-out row with the descriptions that the models wrote for it.

    Attributes:
        row_id: the row's id in the catalog.
        group: key of its group.
        shared_with_train: what it has in common with a training row: `description`, `image` or
            both, separated by a space; else empty.
        fields: the row's fields (name, category ...) without picture and description.
        reference: the catalog's own description.
        texts: model name (`base`, `tuned` ...) -> the description it wrote.
        scores: model name -> score of that description by the lead metric.
        losses: model name -> mean loss of the reference's tokens, in nats.
        broken_rules: model name -> rule of the trade -> what is wrong.
        swapped: model name -> what it wrote for another row's picture.
    """

    model_config = RECORD

    row_id: str
    group: str
    shared_with_train: str = ""
    fields: dict[str, str]
    reference: str
    texts: dict[str, str]
    scores: dict[str, float]
    losses: dict[str, float] = {}
    broken_rules: dict[str, dict[str, str]] = {}
    swapped: dict[str, Swapped] = {}

    def is_cut(self, model: str) -> bool:
        """Whether the model's description was cut by `max_new_tokens`."""
        return CUT in self.broken_rules.get(model, {})


class CategoryScores(BaseModel):
    """Scores of the rows of one category.

    Attributes:
        rows: how many there are.
        scores: model name -> mean of the lead metric over the rows.
    """

    model_config = RECORD

    category: str
    rows: int
    scores: dict[str, float]


class EvaluationReport(BaseModel):
    """Several models on exactly the same held-out rows.

    Attributes:
        rows: number of rows that were described.
        held_out_rows: number of held-out rows there are; more than `rows` if max_rows cut them.
        lead_metric: the metric of each row that decides: `rouge_l` (0 to 1) or `chrf_row` (0 to
            100).
        metrics: model name -> metric -> value. All metrics lie between 0 and 1 but BLEU and chrF,
            which their authors define between 0 and 100, and loss and perplexity. Those that have
            an interval are means over groups, as it is.
        intervals: model name -> metric that is a mean of each row's own -> its confidence interval.
        picture_test: model name -> how much better it scores with each row's own picture than
            with another row's; None if it could not be tried.
        categories: scores by category, the largest first.
        seconds: model name -> time to describe all rows.
        predictions: one record a row, in the catalog's order.
    """

    model_config = RECORD

    rows: int
    held_out_rows: int
    lead_metric: str = "rouge_l"
    metrics: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, Interval]] = {}
    picture_test: dict[str, Interval | None] = {}
    categories: list[CategoryScores] = []
    seconds: dict[str, float]
    predictions: list[Prediction]

    @property
    def scale(self) -> float:
        """The greatest value of the lead metric."""
        return 1.0 if self.lead_metric == "rouge_l" else 100.0

    @property
    def groups(self) -> int:
        """How many groups the described rows belong to."""
        return len({row.group for row in self.predictions})

    @property
    def shared_rows(self) -> int:
        """Described rows that share a description or an image with a training row."""
        return sum(bool(row.shared_with_train) for row in self.predictions)

    def cut_rows(self, model: str) -> int:
        """Rows whose description by this model was cut by `max_new_tokens`."""
        return sum(row.is_cut(model) for row in self.predictions)

    def by_shared(self) -> list[CategoryScores]:
        """The scores of the rows that share something with training rows, and of the others."""
        shared = [row for row in self.predictions if row.shared_with_train]
        others = [row for row in self.predictions if not row.shared_with_train]
        named = {"shared with training rows": shared, "all other rows": others}
        return [
            CategoryScores(
                category=name,
                rows=len(rows),
                scores={model: fmean(row.scores[model] for row in rows) for model in self.models},
            )
            for name, rows in named.items()
            if rows
        ]

    @property
    def models(self) -> list[str]:
        """Names of the models that were compared."""
        return list(self.metrics)

    def table(self) -> dict[str, list[Any]]:
        """Every prediction of every row, as columns of equal length."""
        rows = self.predictions
        columns: dict[str, list[Any]] = {
            "row_id": [row.row_id for row in rows],
            "group": [row.group for row in rows],
            "shared_with_train": [row.shared_with_train for row in rows],
            "reference": [row.reference for row in rows],
        }
        for field in dict.fromkeys(field for row in rows for field in row.fields):
            columns[f"field_{field}"] = [row.fields.get(field) for row in rows]
        for name in self.models:
            columns[name] = [row.texts[name] for row in rows]
            columns[f"{name}_score"] = [row.scores[name] for row in rows]
            columns[f"{name}_loss"] = [row.losses.get(name) for row in rows]
            columns[f"{name}_broken_rules"] = [
                "; ".join(
                    f"{rule}: {what}" for rule, what in row.broken_rules.get(name, {}).items()
                )
                for row in rows
            ]
        for name in self.picture_test:
            swapped = [row.swapped.get(name) for row in rows]
            columns[f"{name}_other_picture"] = [each and each.row_id for each in swapped]
            columns[f"{name}_for_other_picture"] = [each and each.text for each in swapped]
            columns[f"{name}_score_for_other_picture"] = [each and each.score for each in swapped]
        return columns

    def difference(self, one: str, other: str) -> Interval | None:
        """How much better one model scores than another, row by row, by the lead metric; None if
        one of them is missing on some row."""
        scores = [row.scores for row in self.predictions]
        if not scores or not all({one, other} <= row.keys() for row in scores):
            return None
        groups = [row.group for row in self.predictions]
        return paired([row[one] for row in scores], [row[other] for row in scores], groups)
