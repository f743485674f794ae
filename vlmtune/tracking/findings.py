"""What a run found out of models, in MLflow. It stands apart from experiment.py, which training
uses, too: a model must not be trained again because its evaluation is logged otherwise."""

from typing import Any

from vlmtune.catalog.catalog import Catalog
from vlmtune.describing.results import DescribingRecord
from vlmtune.evaluation.gate import PromotionDecision
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.tracking.experiment import active_run_id

TAG_LENGTH = 5_000  # MLflow's limit for a tag
THUMBNAIL_SIDE = 160


def log_evaluation(
    report: EvaluationReport, catalog: Catalog, example_rows: int, trained_in: str | None
) -> None:
    """Log the metrics of each model and a table of examples with their pictures.

    Args:
        trained_in: id of the MLflow run that trained the adapter; tagged if it is another one.
    """
    import mlflow

    run_id = active_run_id()
    if not run_id:
        return
    mlflow.log_metrics(_flat_metrics(report))
    mlflow.log_table(report.table(), "predictions.json")
    if trained_in and trained_in != run_id:
        mlflow.set_tag("vlmtune.trained_in_run", trained_in)
    if example_rows:
        mlflow.log_table(_example_table(report, catalog, example_rows), "examples.json")


def _flat_metrics(report: EvaluationReport) -> dict[str, float]:
    """Metrics of each model, with the ends of their intervals, and the picture test."""
    flat: dict[str, float] = {}
    for name, metrics in report.metrics.items():
        flat |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        for metric, found in report.intervals.get(name, {}).items():
            if found.low is not None and found.high is not None:
                flat |= {f"{name}/{metric}_low": found.low, f"{name}/{metric}_high": found.high}
    for name, seen in report.picture_test.items():
        if seen:
            flat[f"{name}/picture_gain"] = seen.mean
    return flat


def log_decision(decision: PromotionDecision) -> None:
    """Tag the run with the gate's verdict, and keep all that was asked."""
    import mlflow

    if active_run_id():
        mlflow.set_tag(f"vlmtune.gate.{decision.subject}", decision.describe()[:TAG_LENGTH])
        mlflow.log_dict(decision.model_dump(), f"gate_{decision.subject}.json")


def _example_table(report: EvaluationReport, catalog: Catalog, rows: int) -> dict[str, list[Any]]:
    import mlflow

    wanted = {prediction.row_id: prediction for prediction in report.predictions[:rows]}
    table: dict[str, list[Any]] = {"picture": [], "reference": []}
    for number, row_id in enumerate(catalog.rows["row_id"]):
        if row_id not in wanted:
            continue
        prediction = wanted[row_id]
        picture = catalog.open_pictures(number)[0]
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        table["picture"].append(mlflow.Image(picture))
        table["reference"].append(prediction.reference)
        for name, text in prediction.texts.items():
            table.setdefault(name, []).append(text)
        for field, value in prediction.fields.items():
            table.setdefault(field, []).append(value)
    return table


def log_descriptions(record: DescribingRecord) -> None:
    """Log how many rows were described, how fast, and how many are to be looked at."""
    import mlflow

    if not active_run_id():
        return
    mlflow.set_tag("vlmtune.described_by", record.model)
    mlflow.log_metrics({f"describe/{name}": value for name, value in record.metrics.items()})
    mlflow.log_metrics({f"describe/flag/{flag}": float(n) for flag, n in record.flags.items()})
