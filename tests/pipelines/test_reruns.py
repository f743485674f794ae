"""What is run again and what is not; same bits, killed or not; other catalogs."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import SMALL

ROOT = Path(__file__).resolve().parents[2]
CATALOGS = ROOT.parent / "shared" / "catalogs"
FINETUNE = ("--pipeline", "finetune")
LEFT_IN_THE_SHELL = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29512",
    "MLFLOW_EXPERIMENT_NAME": "another",
    "MLFLOW_REGISTRY_URI": "sqlite:///elsewhere.db",
    "MLFLOW_RUN_ID": "0123456789abcdef0123456789abcdef",
    "MLFLOW_TRACKING_URI": "sqlite:///elsewhere.db",
    "RANK": "0",
    "WORLD_SIZE": "2",
}


@pytest.fixture(scope="module")
def small(checkout: Any) -> dict[str, Any]:
    """A short run on its own copy of the catalog; returns its summary."""
    shutil.copytree(checkout.folder / "demo" / "catalog", checkout.folder / "catalog")
    checkout.run(*FINETUNE, *SMALL, "--set=data.source=catalog")
    return checkout.summary()


def test_touching_nothing_runs_nothing(checkout: Any, small: dict[str, Any]) -> None:
    """The same config again comes from the cache, without what only training needs."""
    done = checkout.run(*FINETUNE, *SMALL, "--set=data.source=catalog", PYTHONPROFILEIMPORTTIME="1")
    assert checkout.executed() == set()
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "zenml" in imported
    assert not imported & {"transformers", "trl", "peft", "bitsandbytes"}


def test_editing_the_report_evaluates_again_and_trains_nothing(
    checkout: Any, small: dict[str, Any]
) -> None:
    """An edit invalidates the steps that use the edited file, and what depends on them. (A model
    that was promoted in between would be another champion to judge against.)"""
    template = checkout.folder / "vlmtune" / "evaluation" / "templates" / "report.html.j2"
    text = template.read_text()
    template.write_text(text + "\n<!-- edited -->\n")
    checkout.run(*FINETUNE, *SMALL, "--set=data.source=catalog")
    template.write_text(text)
    # What is found is the same as before, so there is nothing to push anew.
    assert checkout.executed() == {"evaluate_generations", "merge_adapter"}
    again = checkout.summary()
    assert again["mlflow_run_id"] not in (None, small["mlflow_run_id"])
    assert again["trained_in_mlflow_run"] == small["mlflow_run_id"]


def test_touching_one_row_retrains_on_the_same_quantised_base(
    checkout: Any, small: dict[str, Any]
) -> None:
    """A changed description trains again; the base is neither loaded nor quantised again. What a
    shell is left with after another project neither stops nor diverts it."""
    path = checkout.folder / "catalog" / "metadata.csv"
    text = path.read_text()
    path.write_text(text.replace("made to be kept", "built to be kept", 1))
    done = checkout.run(*FINETUNE, *SMALL, "--set=data.source=catalog", **LEFT_IN_THE_SHELL)
    path.write_text(text)
    assert (
        f"ignored (see docs/operations.md): {', '.join(sorted(LEFT_IN_THE_SHELL))}" in done.stderr
    )
    assert checkout.summary()["places"] == small["places"]
    assert str(checkout.home) in small["places"]["mlflow_registry"]
    assert {"load_dataset", "format_messages", "train_qlora"} <= checkout.executed()
    assert "load_quantized_model" not in checkout.executed()
    assert checkout.summary()["adapter_hash"] != small["adapter_hash"]


def test_straight_repeated_and_resumed_runs_give_the_same_bits(
    checkout: Any, small: dict[str, Any]
) -> None:
    """Without the cache, from an empty checkpoint folder each; then killed half-way."""
    arguments = (*FINETUNE, *SMALL, "--set=data.source=catalog", "--no-cache")
    checkout.run(*arguments)
    repeated = checkout.summary()
    assert len(checkout.executed()) == 8
    assert repeated["adapter_hash"] == small["adapter_hash"]
    _kill_after_checkpoint(checkout, arguments, step=4)
    done = checkout.run(*arguments)
    assert "Resuming the training that was interrupted after checkpoint-4" in (
        done.stdout + done.stderr
    )
    assert checkout.summary()["adapter_hash"] == small["adapter_hash"]


def _kill_after_checkpoint(checkout: Any, arguments: tuple[str, ...], step: int) -> None:
    """Start a run and kill -9 it as soon as a checkpoint is whole."""
    process = checkout.start(*arguments)
    marker = f"*/checkpoint-{step}/complete.json"
    deadline = time.monotonic() + 300
    while not list((checkout.folder / ".vlmtune" / "checkpoints").glob(marker)):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((checkout.folder / ".vlmtune" / "checkpoints").glob("*/finished.json"))


def test_a_scheduled_run_reads_the_catalog_anew(checkout: Any, small: dict[str, Any]) -> None:
    """It cannot know the catalog's version or the champion beforehand: it reads the catalog and
    judges against the champion of now; all other steps come from the cache."""
    # ZenML takes the folder of the script that is run for the project's root.
    shutil.copy(Path(__file__).with_name("scheduled_run.py"), checkout.folder)
    done = subprocess.run(
        [sys.executable, "scheduled_run.py", *SMALL, "--set=data.source=catalog"],
        cwd=checkout.folder,
        env=checkout.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "EXECUTED evaluate_generations load_dataset push_to_hub\n" in done.stdout


def test_broken_rows_are_named_without_a_stack_trace(checkout: Any, small: dict[str, Any]) -> None:
    """Found in a step, in the middle of ZenML's machinery, and still told in plain words."""
    folder = checkout.folder / "broken"
    folder.mkdir()
    header = "file_name,Product Name,Category,description,group"
    (folder / "metadata.csv").write_text(f"{header}\nnowhere.png,Mug,Kitchen,A mug.,one\n")
    done = checkout.run(*FINETUNE, *SMALL, "--set=data.source=broken", code=2)
    assert "row 1: picture 'nowhere.png' does not exist" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert checkout.summary()["status"] == "failed"


def test_a_stack_without_tracker_says_so_once(checkout: Any, small: dict[str, Any]) -> None:
    """ZenML's own default stack runs the pipeline; nothing goes to MLflow, and a line says it."""
    done = checkout.run(*FINETUNE, *SMALL, "--set=data.source=catalog", "--stack=default")
    assert (done.stdout + done.stderr).count("has no experiment tracker") == 1
    assert checkout.summary()["mlflow_run_id"] is None
    assert checkout.summary()["adapter_hash"] == small["adapter_hash"]


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run(checkout: Any, small: dict[str, Any]) -> None:
    """Exit code 2, with the step, the learning rate and what to lower in one line."""
    options = (*SMALL, "--set=data.source=catalog", "--set=training.learning_rate=1e30")
    done = checkout.run(*FINETUNE, *options, code=2)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert re.search(r"the loss is nan at step \d, with a learning rate of \S+e\+\d\d\.", line)
    assert "Lower training.learning_rate" in line and "Traceback" not in done.stderr
    assert checkout.summary()["status"] == "failed"


def test_an_unknown_stack_is_named(checkout: Any, small: dict[str, Any]) -> None:
    """One line, with the stacks there are."""
    done = checkout.run(*FINETUNE, *SMALL, "--stack=nowhere", code=2)
    assert "'nowhere'" in done.stderr and "vlmtune-local" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failing_step_fails_the_run(checkout: Any, small: dict[str, Any]) -> None:
    """Exit code 1, a summary that says failed, and the error instead of a stack trace."""
    done = checkout.run(
        *FINETUNE, *SMALL, "--set=data.source=catalog", "--set=lora.target_modules=nothing", code=1
    )
    assert "error: the run failed" in done.stderr and "nothing" in done.stderr
    assert "Traceback" not in done.stderr.partition("error: the run failed")[2]
    assert checkout.summary()["status"] == "failed"


@pytest.mark.catalogs
def test_a_real_catalog_with_other_column_names(checkout: Any, tmp_path: Path) -> None:
    """eshop with its columns renamed: the mapping is used, and the scores are honest and poor."""
    if not (CATALOGS / "eshop").is_dir():
        pytest.skip("../shared/catalogs is not there")
    folder = tmp_path / "eshop"
    shutil.copytree(CATALOGS / "eshop", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    (folder / "metadata.csv").chmod(0o644)
    names = {
        "file_name": "photo",
        "Product Name": "title",
        "Category": "section",
        "description": "text",
    }
    with (folder / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(names.values()))
        writer.writeheader()
        writer.writerows({new: row[old] for old, new in names.items()} for row in rows)
    checkout.run(
        *FINETUNE,
        *(option for option in SMALL if "max_new_tokens" not in option),
        f"--set=data.source={folder}",
        "--set=data.columns={image: photo, name: title, category: section, description: text}",
        "--set=data.held_out.by=null",
        "--set=data.max_rows=null",
        "--set=evaluation.terms={}",
    )
    summary = checkout.summary()
    assert summary["status"] == "completed"
    assert 0 <= summary["metrics"]["tuned"]["rouge_l"] < 0.5
