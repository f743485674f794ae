"""What is printed at the end of a run, and of `run.py try`."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestration.pipeline_run import RunOutcome


def print_outcome(outcome: RunOutcome) -> None:
    """What became of the rows, base against tuned, then where to look."""
    console, summary = Console(), outcome.summary
    if summary["catalog"]:
        is_split = summary["descriptions"] is None
        console.print(rows_in_words(summary["catalog"], is_split), highlight=False)
    if summary["descriptions"]:
        words = descriptions_in_words(summary["descriptions"])
        console.print(words, highlight=False, soft_wrap=True)
    base, tuned = (summary["metrics"].get(name, {}) for name in ("base", "tuned"))
    if tuned:
        table = Table("metric", "base", "tuned", title="Held-out rows")
        for metric, value in tuned.items():
            before = f"{base[metric]:.3f}" if metric in base else ""
            table.add_row(metric, before, f"{value:.3f}")
        console.print(table)
    cached = [name for name, step in summary["steps"].items() if step["cached"]]
    if cached:
        console.print(f"From the cache: {', '.join(cached)}", highlight=False)
    for label, place in where_to_look(outcome):
        console.print(f"{label:<12} {place}", highlight=False, soft_wrap=True)


def rows_in_words(catalog: dict[str, Any], is_split: bool = True) -> str:
    """The ledger's counts, and the reasons that keep rows out, as text to print."""
    counts = catalog["rows"]
    sides = f"; {counts['train']} to train on, {counts['held_out']} held out" if is_split else ""
    lines = [
        f"{counts['rows_read']} rows read: {counts['kept']} kept, {counts['repaired']} repaired, "
        f"{counts['quarantined']} quarantined{sides}"
    ]
    lines += [f"  {rows:>6} {code}" for code, rows in catalog["reasons"].items()]
    return "\n".join(lines)


def descriptions_in_words(found: dict[str, Any]) -> str:
    """How many rows were described, by what, and what is to be looked at, as text to print."""
    lines = [
        f"{found['rows']} rows described by the {found['model']}; "
        f"{found['flagged_rows']} to look at"
    ]
    lines += [f"  {rows:>6} {flag}" for flag, rows in found["flags"].items()]
    return "\n".join(lines)


def where_to_look(outcome: RunOutcome) -> list[tuple[str, str]]:
    """Label and place of everything a run leaves."""
    folder, summary = outcome.folder, outcome.summary
    files = {
        "descriptions": "descriptions.html",
        "as a table": "descriptions.csv",
        "report": "report.html",
        "data report": "data_report.html",
        "ledger": "ledger.html",
        "quarantine": "quarantine",
        "summary": "summary.json",
    }
    places = [(label, str(folder / name)) for label, name in files.items()]
    places = [(label, place) for label, place in places if Path(place).exists()]
    if (folder / "publish").is_dir():
        places.append(("publish", f"{folder / 'publish'} (ready to push: set hub.repo_id)"))
    if summary["mlflow_run_id"]:
        places.append(("MLflow run", summary["mlflow_run_id"]))
    if outcome.stack.artifact_folder and outcome.stack.tracker:
        store = outcome.stack.artifact_folder / "mlflow.db"
        places.append(("look at it", f"mlflow ui --backend-store-uri sqlite:///{store}"))
    if "adapter" in summary["artifacts"]:
        places.append(("lineage", "python run.py lineage latest"))
    return places


def print_descriptions(texts: dict[str, str]) -> None:
    """One column a model."""
    table = Table(show_lines=True)
    for name in texts:
        table.add_column(name, overflow="fold")
    table.add_row(*texts.values())
    Console().print(table)
