"""What an evaluation found: plain, JSON-serialisable records."""

from pydantic import BaseModel, ConfigDict

BASE, TUNED = "base", "tuned"


class Prediction(BaseModel):
    """One held-out row with the descriptions that the models wrote for it.

    Attributes:
        row_id: the row's id in the catalog.
        fields: the row's fields (name, category ...) without picture and description.
        reference: the catalog's own description.
        texts: model name (`base`, `tuned`) -> the description it wrote.
        scores: model name -> ROUGE-L of that description against the reference, 0 to 1.
    """

    model_config = ConfigDict(frozen=True)

    row_id: str
    fields: dict[str, str]
    reference: str
    texts: dict[str, str]
    scores: dict[str, float]


class EvaluationReport(BaseModel):
    """Base and tuned model on exactly the same held-out rows.

    Attributes:
        rows: number of rows that were described.
        held_out_rows: number of held-out rows there are; more than `rows` if max_rows cut them.
        metrics: model name -> metric -> value. All metrics lie between 0 and 1 but BLEU and
            chrF, which their authors define between 0 and 100.
        seconds: model name -> time to describe all rows.
        predictions: one record a row, in the catalog's order.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    held_out_rows: int
    metrics: dict[str, dict[str, float]]
    seconds: dict[str, float]
    predictions: list[Prediction]
