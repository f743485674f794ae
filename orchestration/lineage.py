"""From a merged model back to the rows, the base model and the code that made it."""

import json
from pathlib import Path
from typing import Any

from rich.tree import Tree

from vlmtune.errors import UserError

SHOWN_METADATA = (
    "source",
    "version",
    "rows",
    "train_rows",
    "held_out_rows",
    "base",
    "revision",
    "base_revision",
    "content_hash",
)


def lineage_tree(run_name: str, runs_dir: Path) -> Tree:
    """The tree of a run's merged model: each artifact, the step and run that made it, and what
    went into that step.

    Args:
        run_name: name of a pipeline run; `latest` for the newest in `runs_dir`.

    Raises:
        UserError: no such run.
    """
    from zenml.client import Client

    name = _latest_run(runs_dir) if run_name == "latest" else run_name
    try:
        run = Client().get_pipeline_run(name, allow_name_prefix_match=False)
    except KeyError:
        raise UserError(
            f"ZenML knows no run named {name!r}.", "See the folders in runs/."
        ) from None
    leaf = run.steps.get("merge_adapter") or list(run.steps.values())[-1]
    tree = Tree(f"[bold]{run.name}[/bold] ({run.status.value})")
    for versions in leaf.outputs.values():
        _add_artifact(tree, versions[0], seen=set())
    return tree


def _latest_run(runs_dir: Path) -> str:
    summary = runs_dir / "latest" / "summary.json"
    if not summary.is_file():
        raise UserError(f"there is no finished run in {runs_dir}.", "Run the pipeline first.")
    return str(json.loads(summary.read_text())["run_name"])


def _add_artifact(parent: Tree, version: Any, seen: set[str]) -> None:
    """One artifact, with the step that made it and, below, what went into it."""
    step, run = version.step, version.run
    node = parent.add(f"[bold]{version.name}[/bold] version {version.version}  [dim]{version.uri}")
    if str(version.id) in seen:
        node.add("[dim]see above")
        return
    seen.add(str(version.id))
    for key in SHOWN_METADATA:
        if key in version.run_metadata:
            node.add(f"{key}: {version.run_metadata[key]}")
    made = node.add(f"made by step [bold]{step.name}[/bold] of run {run.name}")
    for key, value in _made_with(step, run).items():
        made.add(f"{key}: {value}")
    for inputs in step.inputs.values():
        for given in inputs:
            _add_artifact(made, given, seen)


def _made_with(step: Any, run: Any) -> dict[str, str]:
    """Code commit and MLflow run of a step, as far as they are known."""
    context = run.config.extra.get("run_context", {})
    commit = context.get("provenance", {}).get("code_commit")
    mlflow_run = step.run_metadata.get("mlflow_run_id")
    known = {"code commit": commit, "MLflow run": mlflow_run}
    return {key: str(value) for key, value in known.items() if value}
