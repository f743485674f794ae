"""The demo from end to end: what it learned, and what it leaves behind."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.loaded_run import load_models

STEPS = {
    "load_dataset",
    "report_catalog",
    "format_messages",
    "load_quantized_model",
    "train_qlora",
    "evaluate_generations",
    "merge_adapter",
    "push_to_hub",
}
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def test_the_base_knows_nothing_of_the_house_style(demo: dict[str, Any]) -> None:
    """What the tuned model can do, it has learned from the catalog."""
    base = demo["metrics"]["base"]
    assert base["rouge_l"] < 0.40
    assert base["term_colour_any"] == 0
    assert base["term_pattern_any"] == 0


def test_the_tuned_model_writes_in_the_house_style(demo: dict[str, Any]) -> None:
    """On combinations of colour, pattern and object that it was never trained on."""
    tuned = demo["metrics"]["tuned"]
    assert tuned["rouge_l"] >= 0.85
    assert tuned["term_colour"] >= 0.90
    assert tuned["term_pattern"] >= 0.90
    assert tuned["copied_name"] >= 0.90


def test_the_words_come_from_the_picture(demo: dict[str, Any]) -> None:
    """With another row's picture, of another colour, the row's own colour is not named."""
    from vlmtune.evaluation.generation import describe_batch

    parts = load_models(demo)
    rows = list(parts.examples.held_out)
    colours = parts.config.evaluation.terms["colour"]
    own = [
        next(word for word in colours if word in row["completion"][0]["content"]) for row in rows
    ]
    others = [
        next(
            other
            for other in [*range(number + 1, len(rows)), *range(number)]
            if own[other] != own[number]
        )
        for number in range(len(rows))
    ]
    texts = describe_batch(
        parts.tuned,
        parts.processor,
        {
            "prompt": [row["prompt"] for row in rows],
            "images": [parts.catalog.open_pictures(rows[other]["row"]) for other in others],
        },
        parts.config.generation,
    )
    named = [colour in text for colour, text in zip(own, texts, strict=True)]
    shown = [own[other] in text for other, text in zip(others, texts, strict=True)]
    assert sum(named) / len(named) <= 0.05
    assert sum(shown) / len(shown) >= 0.85  # it names the colour that it sees


def test_summary_tells_the_run(demo: dict[str, Any]) -> None:
    """Every key that a scheduler reads is there and true."""
    assert demo["status"] == "completed"
    assert set(demo["steps"]) == STEPS
    assert all(not step["cached"] and step["seconds"] > 0 for step in demo["steps"].values())
    assert demo["seconds"] >= demo["steps"]["train_qlora"]["seconds"]
    assert demo["mlflow_run_id"] == demo["trained_in_mlflow_run"]
    for artifact in demo["artifacts"].values():
        assert Path(artifact["uri"]).exists()
        assert artifact["made_by_run"] == demo["run_name"]


def test_run_folder_is_complete(checkout: Any, demo: dict[str, Any]) -> None:
    """Config, report and both models, ready to push."""
    folder = checkout.folder / "runs" / demo["run_name"]
    assert (folder / "config.resolved.yaml").is_file()
    assert "data:image/jpeg" in (folder / "report.html").read_text()
    for kind, weights in (("adapter", "adapter_model"), ("merged", "model")):
        bundle = folder / "publish" / kind
        assert (bundle / f"{weights}.safetensors").is_file()
        assert (bundle / "processor_config.json").is_file()
        assert demo["run_name"] in (bundle / "README.md").read_text()
    adapter = json.loads((folder / "publish" / "adapter" / "adapter_config.json").read_text())
    assert adapter["revision"] == demo["base_model"]["revision"]


def test_no_pickle_in_artifacts_or_publication(checkout: Any, demo: dict[str, Any]) -> None:
    """Neither by name nor by content."""
    roots = [Path(artifact["uri"]) for artifact in demo["artifacts"].values()]
    roots.append(checkout.folder / "runs")
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        assert path.suffix not in PICKLE_SUFFIXES, path
        assert not path.read_bytes()[:2].startswith(b"\x80\x04"), path  # pickle protocol 4


def test_mlflow_has_the_run(checkout: Any, demo: dict[str, Any]) -> None:
    """Loss curve, parameters, metrics, the catalog's digest and the table with pictures."""
    database = next((checkout.home / "zenml").rglob("mlflow.db"))
    store = sqlite3.connect(database)
    run = demo["mlflow_run_id"]

    def column(query: str) -> list[Any]:
        return [row[0] for row in store.execute(query, (run,))]

    losses = column("select value from metrics where key = 'loss' and run_uuid = ? order by step")
    assert len(losses) >= 20 and losses[-1] < losses[0] / 3
    keys = set(column("select distinct key from metrics where run_uuid = ?"))
    wanted = {"eval_loss", "learning_rate", "tokens_per_second", "memory_gib"}
    assert wanted | {"base/rouge_l", "tuned/rouge_l"} <= keys
    parameters = set(column("select key from params where run_uuid = ?"))
    assert {"training.learning_rate", "lora.r", "data.source", "model.id"} <= parameters
    digests = column(
        "select d.digest from datasets d join inputs i on i.source_id = d.dataset_uuid "
        "where i.destination_id = ?"
    )
    assert len(digests) == 1 and len(digests[0]) == 36
    tags = column("select key from tags where run_uuid = ?")
    assert {"vlmtune.code_commit", "vlmtune.lock_hash", "vlmtune.catalog_version"} <= set(tags)
    names = {path.name for path in database.parent.rglob("*") if run in str(path)}
    assert {"config.resolved.yaml", "report.html", "examples.json"} <= names


def test_tensorboard_has_the_curve(checkout: Any, demo: dict[str, Any]) -> None:
    """Events are written beside the checkpoints' folder, under the run's name."""
    events = checkout.folder / ".vlmtune" / "tensorboard" / demo["run_name"]
    assert list(events.rglob("events.out.tfevents.*"))


def test_checkpoints_are_removed_after_a_good_run(checkout: Any, demo: dict[str, Any]) -> None:
    """They would only make the next run go on from the end of this one."""
    assert not list((checkout.folder / ".vlmtune" / "checkpoints").glob("*/checkpoint-*"))


def test_a_second_run_comes_from_the_cache(checkout: Any, demo: dict[str, Any]) -> None:
    """Every step; no MLflow run is made, and the summary names the one that trained."""
    checkout.run("--pipeline", "finetune")
    again = checkout.summary()
    assert checkout.executed() == set()
    assert again["mlflow_run_id"] is None
    assert again["trained_in_mlflow_run"] == demo["mlflow_run_id"]
    assert again["metrics"] == demo["metrics"]
    assert {entry["made_by_run"] for entry in again["artifacts"].values()} == {demo["run_name"]}


def test_lineage_leads_back_to_the_catalog(checkout: Any, demo: dict[str, Any]) -> None:
    """From the merged model to digest, base revision and MLflow run."""
    tree = checkout.run("lineage", demo["run_name"]).stdout
    assert "merged_model" in tree and "sha256:" in tree
    assert demo["base_model"]["revision"] in tree
    assert demo["mlflow_run_id"] in tree
    assert demo["adapter_hash"] in tree


def test_try_describes_one_picture_three_times(checkout: Any, demo: dict[str, Any]) -> None:
    """Base, adapter and merged model; the tuned ones copy a name they have never seen."""
    picture = "demo/catalog/images/0001.jpg"
    shown = checkout.run("try", picture, "--name", "Rumosa Tali", "--category", "Living Room")
    assert all(name in shown.stdout for name in ("base", "adapter", "merged"))
    assert shown.stdout.replace("\n", " ").count("Meet the") == 2


def test_try_names_a_missing_field(checkout: Any, demo: dict[str, Any]) -> None:
    """One clear line, no stack trace."""
    picture = "demo/catalog/images/0001.jpg"
    done = checkout.run("try", picture, "--name", "Rumosa Tali", code=2)
    assert "--category" in done.stderr and "Traceback" not in done.stderr


def test_zenml_shows_what_the_steps_made(checkout: Any, demo: dict[str, Any]) -> None:
    """Contact sheet, conversations, metrics, report and model cards are there to look at."""
    database = next((checkout.home / "zenml").rglob("zenml.db"))
    shown = sqlite3.connect(database).execute("select uri from artifact_visualization").fetchall()
    names = {Path(uri).name for (uri,) in shown}
    wanted = {"contact_sheet.png", "conversations.md", "metrics.md", "card_adapter.md"}
    assert wanted <= names
    assert any(name.endswith(".html") for name in names)


def test_the_active_stack_of_the_user_is_left_alone(checkout: Any, demo: dict[str, Any]) -> None:
    """The local stack is used for the process only."""
    config = (checkout.home / "zenml" / "config.yaml").read_text()
    database = next((checkout.home / "zenml").rglob("zenml.db"))
    stacks = dict(sqlite3.connect(database).execute("select name, id from stack").fetchall())
    assert set(stacks) == {"default", "vlmtune-local"}
    assert stacks["vlmtune-local"].replace("-", "") not in config.replace("-", "")


@pytest.mark.browser
def test_report_opens_in_a_browser(checkout: Any, demo: dict[str, Any], tmp_path: Path) -> None:
    """A real browser draws it, pictures and all."""
    import shutil
    import subprocess

    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    report = checkout.folder / "runs" / demo["run_name"] / "report.html"
    picture = tmp_path / "report.png"
    subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,1600"),
            *(f"--screenshot={picture}", f"file://{report}"),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    from PIL import Image

    colours = Image.open(picture).convert("RGB").resize((120, 160)).getcolors(20_000)
    assert len(colours) > 500  # a blank or broken page has a handful
