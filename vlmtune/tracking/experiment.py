"""What a run leaves in MLflow. The only module that imports mlflow."""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

from vlmtune.catalog.catalog import Catalog
from vlmtune.catalog.ledger import Decision, RowLedger, flat_line
from vlmtune.describing.results import DescribingRecord
from vlmtune.evaluation.results import EvaluationReport
from vlmtune.revision import is_local
from vlmtune.tracking.provenance import Provenance

logger = logging.getLogger(__name__)

PARAM_LENGTH = 500  # MLflow 3 takes up to 6,000; longer values are in the config artifact
THUMBNAIL_SIDE = 160
LEDGER_ROWS = 2000


def active_run_id() -> str | None:
    """Id of the MLflow run that this step logs to; None if the run is not tracked."""
    import mlflow

    run = mlflow.active_run()
    return run.info.run_id if run else None


def log_run(config: dict[str, Any], config_yaml: str, provenance: Provenance) -> None:
    """Log the resolved config, as an artifact and as flat params, and where the code is from."""
    import mlflow

    if not active_run_id():
        return
    mlflow.log_text(config_yaml, "config.resolved.yaml")
    mlflow.log_params({key: str(value)[:PARAM_LENGTH] for key, value in _flatten(config).items()})
    mlflow.set_tags(
        {
            "vlmtune.code_commit": provenance.code_commit or "unknown",
            "vlmtune.lock_hash": provenance.lock_hash or "unknown",
        }
    )
    mlflow.log_dict(provenance.model_dump(), "provenance.json")


def log_catalog(catalog: Catalog, context: str = "training") -> None:
    """Name the catalog, with its digest, as the run's data-set input.

    Args:
        context: what it is used for.
    """
    import mlflow
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    if not active_run_id():
        return
    if is_local(catalog.source):
        with warnings.catch_warnings():  # MLflow finds its own local source twice
            warnings.simplefilter("ignore", UserWarning)
            source = resolve_dataset_source(str(Path(catalog.source).resolve()))
    else:
        source = HuggingFaceDatasetSource(catalog.source, revision=catalog.version)
    digest = catalog.version.removeprefix("sha256:")[:36]  # MLflow's limit for a digest
    mlflow.log_input(MetaDataset(source, name="catalog", digest=digest), context=context)
    mlflow.set_tag("vlmtune.catalog_version", catalog.version)


def log_ledger(ledger: RowLedger) -> None:
    """Log the counts of the row ledger, its lines as a table, and all of it as a csv file."""
    import mlflow

    if not active_run_id():
        return
    mlflow.log_metrics({f"data/{name}": count for name, count in ledger.counts.items()})
    mlflow.log_metrics({f"data/reason/{code}": n for code, n in ledger.reason_counts.items()})
    mlflow.log_metric("data/pictures_decoded", ledger.pictures_decoded)
    with tempfile.TemporaryDirectory() as folder:
        mlflow.log_artifact(str(ledger.write_csv(Path(folder) / "ledger.csv")))
    mlflow.log_table(_ledger_table(ledger), "ledger.json")


def _ledger_table(ledger: RowLedger) -> dict[str, list[Any]]:
    """Quarantined rows first, then repaired ones, then kept ones, as many as MLflow shows well;
    the whole ledger is in ledger.csv."""
    order = {Decision.QUARANTINED: 0, Decision.REPAIRED: 1, Decision.KEPT: 2}
    ranked = sorted(enumerate(ledger.lines["decision"]), key=lambda entry: order[entry[1]])
    shown = ledger.lines.select([number for number, _ in ranked[:LEDGER_ROWS]])
    rows = [flat_line(line) for line in shown]
    return {name: [row[name] for row in rows] for name in rows[0]}


def log_training_metrics(metrics: dict[str, float], step: int) -> None:
    """Log what the Trainer reported at a step."""
    import mlflow

    if active_run_id():
        mlflow.log_metrics(metrics, step=step)


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
    for name, metrics in report.metrics.items():
        mlflow.log_metrics({f"{name}/{metric}": value for metric, value in metrics.items()})
    if trained_in and trained_in != run_id:
        mlflow.set_tag("vlmtune.trained_in_run", trained_in)
    if example_rows:
        mlflow.log_table(_example_table(report, catalog, example_rows), "examples.json")


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


def log_html(html: str, name: str) -> None:
    """Keep a page with the run."""
    import mlflow

    if active_run_id():
        mlflow.log_text(html, name)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
