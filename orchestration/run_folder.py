"""The folder of a run: what it was, what came out, and what is ready to push.

It is filled by run.py from the run's artifacts, so that it is the same whether a step ran here,
elsewhere, or came from the cache.
"""

import json
import math
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlmtune.describing.files import replaced, write_files
from vlmtune.publishing.bundle import assemble_bundle
from vlmtune.publishing.publication import folders_to_publish, require_tested, tested_files

SUMMARY, CONFIG = "summary.json", "config.resolved.yaml"
PAGES = {  # artifact -> page; what the merged model was asked comes after the tuned one
    "report": "report.html",
    "merged_report": "report.html",
    "data_report": "data_report.html",
    "ledger_page": "ledger.html",
    "descriptions_page": "descriptions.html",
}
LATEST = {"finetune": "latest"}  # of another pipeline it is latest-NAME


def make_run_folder(runs_dir: Path, pipeline: str, run_name: str, config_yaml: str) -> Path:
    """Make the folder with its resolved config, and point `latest` at it."""
    folder = runs_dir / run_name
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(config_yaml, encoding="utf-8")
    latest = runs_dir / LATEST.get(pipeline, f"latest-{pipeline}")
    pointer = runs_dir / f".latest-{run_name}"
    pointer.symlink_to(run_name)
    pointer.replace(latest)  # atomic: two runs ending at once leave a whole link
    return folder


def fill_run_folder(
    folder: Path, run: Any, hub: Any, places: dict[str, str | None]
) -> dict[str, Any]:
    """Write summary, pages, ledger and what is ready to push; returns the summary.

    Args:
        run: ZenML's record of the pipeline run, finished or failed.
        hub: the `hub` section of the config.
        places: see `orchestration.places`.

    Raises:
        UserError: an artifact is gone, or not what was stored: also one of a cached step, which
            nothing else of the run has read.
    """
    from steps.artifacts import load_artifact

    versions = run_artifacts(run)
    artifacts = {name: load_artifact(version) for name, version in versions.items()}
    summary = _finite(_summary(run, versions, artifacts) | {"places": places})
    write_summary(folder, summary)
    for artifact, page in PAGES.items():
        if artifact in artifacts:
            with replaced(folder / page) as scratch:
                scratch.write_text(str(artifacts[artifact]), encoding="utf-8")
    if "descriptions" in artifacts:
        write_files(artifacts["descriptions"].table, folder)
    if "ledger" in artifacts:
        _lay_out_ledger(folder, artifacts["ledger"])
    if "publication" in artifacts:
        _lay_out_publication(folder / "publish", artifacts, hub)
    return summary


def write_failure(
    folder: Path, run_name: str, seconds: float, places: dict[str, str | None]
) -> None:
    """The summary of a run that ended before ZenML knew of it."""
    write_summary(
        folder,
        {
            "run_name": run_name,
            "status": "failed",
            "seconds": round(seconds, 1),
            "steps": {},
            "catalog": None,
            "warnings": {},
            "metrics": {},
            "gate": None,
            "publication": None,
            "registry": None,
            "descriptions": None,
            "mlflow_run_id": None,
            "artifacts": {},
            "places": places,
        },
    )


def run_artifacts(run: Any) -> dict[str, Any]:
    """Artifact name -> artifact version, of all steps of a run."""
    return {
        name: versions[0]
        for step in run.steps.values()
        for name, versions in step.outputs.items()
        if versions
    }


def _summary(run: Any, versions: dict[str, Any], artifacts: dict[str, Any]) -> dict[str, Any]:
    evaluation = _newest(artifacts, "merged_evaluation", "evaluation")
    adapter = artifacts.get("adapter")
    base = adapter.record.base if adapter else None
    return {
        "run_name": run.name,
        "status": run.status.value,
        "seconds": _seconds(run),
        "steps": {
            name: {
                "status": step.status.value,
                "cached": step.status.value == "cached",
                "seconds": _seconds(step),
            }
            for name, step in run.steps.items()
        },
        "catalog": _catalog_facts(artifacts),
        "warnings": artifacts.get("warnings", {}),
        "metrics": evaluation.metrics if evaluation else {},
        "gate": _gate_facts(_newest(artifacts, "merged_decision", "decision")),
        "publication": _publication_facts(artifacts),
        "registry": None,  # known when the run is over
        "descriptions": _description_facts(artifacts),
        "mlflow_run_id": mlflow_run_of(run),
        "trained_in_mlflow_run": adapter.record.mlflow_run_id if adapter else None,
        "training": adapter.record.describe() | adapter.record.layout if adapter else None,
        "base_model": base.model_dump() | {"revision": base.revision} if base else None,
        "adapter_hash": adapter.content_hash if adapter else None,
        "artifacts": {
            name: {"id": str(version.id), "uri": version.uri, "made_by_run": _maker(version)}
            for name, version in versions.items()
        },
    }


def _newest(artifacts: dict[str, Any], *names: str) -> Any:
    """The first of these artifacts that there is."""
    return next((artifacts[name] for name in names if name in artifacts), None)


def _gate_facts(decision: Any) -> dict[str, Any] | None:
    if decision is None:
        return None
    return {
        "verdict": decision.verdict,
        "said": decision.describe(),
        **decision.model_dump(include={"subject", "champion", "checks"}),
    }


def _publication_facts(artifacts: dict[str, Any]) -> dict[str, Any] | None:
    if "publication" not in artifacts:
        return None
    return artifacts["publication"].model_dump(include={"status", "reason", "repos"})


def _catalog_facts(artifacts: dict[str, Any]) -> dict[str, Any] | None:
    if "ledger" not in artifacts:
        return None
    ledger = artifacts["ledger"]
    return {
        "version": ledger.catalog_version,
        "rows": ledger.counts,
        "reasons": ledger.reason_counts,
        "pictures_decoded": ledger.pictures_decoded,
        "pictures_known": ledger.pictures_known,
        "previous_ledger": ledger.previous,
    }


def _description_facts(artifacts: dict[str, Any]) -> dict[str, Any] | None:
    if "descriptions" not in artifacts:
        return None
    record = artifacts["descriptions"].record
    return {**record.model_dump(), "rows_per_second": record.rows_per_second}


def mlflow_run_of(run: Any) -> str | None:
    """Id of the MLflow run that this pipeline run made; None if no tracked step was executed."""
    for step in run.steps.values():
        run_id = step.run_metadata.get("mlflow_run_id")
        if run_id and step.status.value != "cached":
            return str(run_id)
    return None


def _maker(version: Any) -> str | None:
    """Name of the pipeline run in which an artifact was made."""
    return version.run.name if version.producer_pipeline_run_id else None


def _seconds(record: Any) -> float | None:
    if not record.start_time:
        return None
    end = record.end_time or datetime.now(UTC).replace(tzinfo=None)
    return round((end - record.start_time).total_seconds(), 2)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, or write it anew."""
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replaced(folder / SUMMARY) as scratch:  # whoever watches never reads half of it
        scratch.write_text(text, encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinity, which are no JSON."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lay_out_ledger(folder: Path, ledger: Any) -> None:
    ledger.write_csv(folder / "ledger.csv")
    if ledger.counts["quarantined"]:
        shutil.copytree(ledger.quarantine, folder / "quarantine", dirs_exist_ok=True)


def _lay_out_publication(folder: Path, artifacts: dict[str, Any], hub: Any) -> None:
    publication = artifacts["publication"]
    if publication.status == "kept_back" or "adapter" not in artifacts:
        return  # nothing goes out, or another run made it and has it ready
    adapter, merged = artifacts["adapter"], artifacts["merged_model"]
    folders = folders_to_publish(hub, adapter, merged)
    require_tested(folders, tested_files(artifacts["merged_decision"], merged))
    for kind, source in folders.items():
        receipt = publication.receipts.get(kind)
        assemble_bundle(source, publication.cards[kind], folder / kind, receipt)
