"""What is printed at the end of a run, and of `run.py try`."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestration.pipeline_run import RunOutcome
from vlmtune.tracking.registry import Registry


def print_outcome(outcome: RunOutcome) -> None:
    """What became of the rows, base against tuned, then where to look."""
    console, summary = Console(), outcome.summary
    if summary["catalog"]:
        is_split = summary["descriptions"] is None
        words = rows_in_words(summary["catalog"], is_split)
        console.print(words, highlight=False, soft_wrap=True)
    for key, problem in summary["warnings"].items():
        console.print(f"Warning: {key}: {problem}", highlight=False, soft_wrap=True, markup=False)
    if summary["descriptions"]:
        words = descriptions_in_words(summary["descriptions"])
        console.print(words, highlight=False, soft_wrap=True)
    if models := summary["metrics"]:
        table = Table("metric", *models, title="Held-out rows")
        for metric in next(iter(models.values())):
            values = (metrics.get(metric) for metrics in models.values())
            table.add_row(metric, *("" if each is None else f"{each:.3f}" for each in values))
        console.print(table)
    if gate := summary["gate"]:
        registry = summary["registry"]
        but = f", but {registry['said']}" if registry and not registry["live"] else ""
        console.print(f"Gate: {gate['said']}{but}", highlight=False, soft_wrap=True)
    for repo in ((summary["publication"] or {}).get("repos") or {}).values():
        tag = f" as {repo['tag']}" if repo["tag"] else ""
        console.print(f"Pushed{tag}: {repo['url']}", highlight=False, soft_wrap=True)
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
        f"{counts['quarantined']} quarantined, {counts['duplicate']} duplicate{sides}"
    ]
    if is_split:
        lines.append(
            f"  of the held-out rows {counts['held_out_sharing_description']} share a description "
            f"and {counts['held_out_sharing_image']} an image with rows to train on"
        )
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
        pushed = (summary["publication"] or {}).get("repos")
        held = (summary["publication"] or {}).get("reason")
        ready = "not pushed" if held else "ready to push: set hub.repo_id"
        note = "as it was pushed" if pushed else ready
        places.append(("publish", f"{folder / 'publish'} ({note})"))
    if summary["mlflow_run_id"]:
        places.append(("MLflow run", summary["mlflow_run_id"]))
    if outcome.stack.artifact_folder and outcome.stack.tracker:
        store = outcome.stack.artifact_folder / "mlflow.db"
        places.append(("look at it", f"mlflow ui --backend-store-uri sqlite:///{store}"))
    if "adapter" in summary["artifacts"]:
        places.append(("lineage", "python run.py lineage latest"))
    return places


def print_versions(registry: Registry) -> None:
    """Each version of a catalog's models, newest first, and every change of the champion."""
    console = Console()
    versions = registry.versions()
    if not versions:
        console.print(f"{registry.name} has no versions yet.", highlight=False)
        return
    table = Table("version", "", "on the Hub", "run", "gate", title=registry.name)
    for version in versions:
        table.add_row(
            f"v{version.number}",
            ", ".join(version.aliases),
            version.published,
            version.facts.run_name,
            version.facts.verdict,
        )
    console.print(table)
    for move in registry.moves():
        before = f"v{move.before}" if move.before else "none"
        console.print(
            f"{move.at[:19]}  {before} -> v{move.after}  by {move.by}: {move.why}", highlight=False
        )


def print_descriptions(texts: dict[str, str]) -> None:
    """One column a model."""
    table = Table(show_lines=True)
    for name in texts:
        table.add_column(name, overflow="fold")
    table.add_row(*texts.values())
    Console().print(table)
