"""What is printed at the end of a run, and of `run.py try`."""

from rich.console import Console
from rich.table import Table

from orchestration.finetune_run import RunOutcome


def print_outcome(outcome: RunOutcome) -> None:
    """Base against tuned, then where to look."""
    console, summary = Console(), outcome.summary
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


def where_to_look(outcome: RunOutcome) -> list[tuple[str, str]]:
    """Label and place of everything a run leaves."""
    folder, summary = outcome.folder, outcome.summary
    places = [("report", str(folder / "report.html")), ("summary", str(folder / "summary.json"))]
    if (folder / "publish").is_dir():
        places.append(("publish", f"{folder / 'publish'} (ready to push: set hub.repo_id)"))
    if summary["mlflow_run_id"]:
        places.append(("MLflow run", summary["mlflow_run_id"]))
    if outcome.stack.artifact_folder and outcome.stack.tracker:
        store = outcome.stack.artifact_folder / "mlflow.db"
        places.append(("look at it", f"mlflow ui --backend-store-uri sqlite:///{store}"))
    places.append(("lineage", "python run.py lineage latest"))
    return places


def print_descriptions(texts: dict[str, str]) -> None:
    """One column a model."""
    table = Table(show_lines=True)
    for name in texts:
        table.add_column(name, overflow="fold")
    table.add_row(*texts.values())
    Console().print(table)
