"""Base against tuned: one loaded model, its adapter switched off and on, the same rows."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.config.data import DESCRIPTION
from vlmtune.config.evaluation import EvaluationConfig
from vlmtune.evaluation.generation import describe
from vlmtune.evaluation.metrics import rouge_l_by_row, score
from vlmtune.evaluation.results import BASE, TUNED, EvaluationReport, Prediction
from vlmtune.models.adapter import without_adapter
from vlmtune.prompting import with_pictures

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import ProcessorMixin


def compare(
    model: "PeftModel",
    processor: "ProcessorMixin",
    held_out: "Dataset",
    catalog: Catalog,
    config: EvaluationConfig,
    generation: dict[str, Any],
) -> EvaluationReport:
    """Describe at most `max_rows` held-out rows with both models, and score both.

    Args:
        model: the base with the adapter attached.
        held_out: `Examples.held_out`; its first rows are taken, in the catalog's order.
    """
    chosen = held_out.select(range(min(config.max_rows, len(held_out))))
    rows = with_pictures(chosen, catalog)
    tuned, tuned_seconds = describe(
        model, processor, rows, generation, config.batch_size, label=TUNED
    )
    with without_adapter(model) as base_model:
        base, base_seconds = describe(
            base_model, processor, rows, generation, config.batch_size, label=BASE
        )
    return build_report(
        catalog,
        chosen["row"],
        len(held_out),
        texts={BASE: base, TUNED: tuned},
        seconds={BASE: base_seconds, TUNED: tuned_seconds},
        config=config,
    )


def picture_finder(catalog: Catalog) -> Callable[[str], bytes]:
    """A function from a row's id to its first encoded picture."""
    numbers = {row_id: number for number, row_id in enumerate(catalog.rows[ROW_ID])}
    return lambda row_id: catalog.pictures(numbers[row_id])[0]


def build_report(
    catalog: Catalog,
    numbers: list[int],
    held_out_rows: int,
    texts: dict[str, list[str]],
    seconds: dict[str, float],
    config: EvaluationConfig,
) -> EvaluationReport:
    """Score the texts of each model against the catalog's own descriptions.

    Args:
        numbers: the rows' numbers in the catalog.
        texts: model name -> one text a row.
    """
    records = list(catalog.texts().select(numbers))
    references = [record[DESCRIPTION].strip() for record in records]
    fields = [
        {key: value for key, value in record.items() if key not in (ROW_ID, DESCRIPTION)}
        for record in records
    ]
    by_row = {name: rouge_l_by_row(written, references) for name, written in texts.items()}
    predictions = [
        Prediction(
            row_id=record[ROW_ID],
            fields=fields[index],
            reference=references[index],
            texts={name: written[index] for name, written in texts.items()},
            scores={name: scores[index] for name, scores in by_row.items()},
        )
        for index, record in enumerate(records)
    ]
    metrics = {
        name: score(written, references, fields, config.copied_fields, config.terms)
        for name, written in texts.items()
    }
    return EvaluationReport(
        rows=len(records),
        held_out_rows=held_out_rows,
        metrics=metrics,
        seconds=seconds,
        predictions=predictions,
    )
