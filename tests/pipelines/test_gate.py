"""The gate from end to end: what is promoted, kept back, failed, replaced and rolled back.

python -m pytest -m slow tests/pipelines/test_gate.py
"""

import csv
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub_server import HubServer
from tests.pipelines.conftest import Checkout

pytestmark = pytest.mark.slow
STEPS = "--set=training.max_steps=130"
SAVING = ("--set=training.eval_steps=65", "--set=training.save_steps=65")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout with a registry of its own."""
    folder = tmp_path_factory.mktemp("gate")
    yield Checkout(folder)
    shutil.rmtree(folder, ignore_errors=True)


def finetune(shop: Checkout, *options: str, code: int = 0) -> dict[str, Any]:
    """Run the pipeline; returns its summary."""
    shop.run("--pipeline", "finetune", STEPS, *SAVING, *options, code=code)
    return shop.summary()


@pytest.fixture(scope="module")
def first(shop: Checkout) -> dict[str, Any]:
    """The first run, which meets no champion."""
    return finetune(shop)


def champion(shop: Checkout) -> str:
    """Name of the version that is live."""
    lines = shop.run("versions").stdout.splitlines()
    (line,) = (line for line in lines if "champion" in line)
    return line.split()[1]


def unmet(summary: dict[str, Any]) -> list[str]:
    """Names of the checks that were not met."""
    return [check["name"] for check in summary["gate"]["checks"] if not check["met"]]


def changed_catalog(
    shop: Checkout, name: str, change: Callable[[list[dict[str, str]]], None]
) -> str:
    """A copy of the demo's catalog with other rows; returns the option that names it."""
    folder = shop.folder / name
    shutil.copytree(shop.folder / "demo" / "catalog", folder)
    with (folder / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return f"--set=data.source={name}"


def test_the_first_run_is_promoted(shop: Checkout, first: dict[str, Any]) -> None:
    """It becomes the champion; the merged model was judged, too, and is ready to push."""
    assert first["gate"]["verdict"] == "promoted" and first["gate"]["subject"] == "merged"
    assert set(first["metrics"]) == {"base", "tuned", "merged"}
    assert first["publication"]["status"] == "ready" and champion(shop) == "v1"
    folder = shop.folder / "runs" / first["run_name"]
    assert "The gate lets this model pass" in (folder / "report.html").read_text()
    for kind in ("adapter", "merged"):
        assert '"verdict": "promoted"' in (folder / "publish" / kind / "receipt.json").read_text()


def test_the_same_run_comes_from_the_cache(shop: Checkout, first: dict[str, Any]) -> None:
    """Although there is a champion now: it is this very run's."""
    again = finetune(shop)
    assert all(step["cached"] for step in again["steps"].values())
    assert again["gate"] == first["gate"] and champion(shop) == "v1"


def test_a_tie_is_kept_back(shop: Checkout, first: dict[str, Any]) -> None:
    """The same training again, made anew: as good as the champion is not better. Green, and
    nothing is published."""
    tie = finetune(shop, "--set=training.logging_steps=7")
    assert tie["adapter_hash"] == first["adapter_hash"]
    assert tie["gate"]["verdict"] == "kept_back" and unmet(tie) == ["champion"]
    assert tie["gate"]["champion"] == "1" and set(tie["metrics"]) == {"base", "tuned", "champion"}
    assert tie["publication"]["status"] == "kept_back"
    folder = shop.folder / "runs" / tie["run_name"]
    assert not (folder / "publish").exists()
    assert "keeps this model back" in (folder / "report.html").read_text()
    assert champion(shop) == "v1"


def test_shuffled_pictures_make_a_blind_model(shop: Checkout, first: dict[str, Any]) -> None:
    """It learns the house's words, but not to look: kept back."""

    def shuffle(rows: list[dict[str, str]]) -> None:
        names = [row["file_name"] for row in rows]
        random.Random(0).shuffle(names)
        for row, name in zip(rows, names, strict=True):
            row["file_name"] = name

    blind = finetune(shop, changed_catalog(shop, "shuffled", shuffle))
    assert unmet(blind) == ["picture"] and blind["gate"]["verdict"] == "kept_back"
    assert blind["metrics"]["tuned"]["rouge_l"] > 0.6


def test_a_learning_rate_of_zero_makes_an_inert_model(
    shop: Checkout, first: dict[str, Any]
) -> None:
    """Kept back, whatever the base's own scores are."""
    inert = finetune(shop, "--set=training.learning_rate=0", "--set=training.max_steps=4")
    assert unmet(inert) == ["inert"] and inert["gate"]["verdict"] == "kept_back"


def test_random_texts_fail(shop: Checkout, first: dict[str, Any]) -> None:
    """With the held-out rows as they are: below the floor, so the run fails, with exit code 3."""
    ledger = shop.folder / "runs" / first["run_name"] / "ledger.csv"
    with ledger.open(newline="", encoding="utf-8-sig") as file:
        held_out = {line["label"] for line in csv.DictReader(file) if line["side"] == "held_out"}
    assert 50 < len(held_out) < 100

    def scramble(rows: list[dict[str, str]]) -> None:
        words = [word for row in rows for word in row["description"].split()]
        generator = random.Random(0)
        for row in rows:
            if row["Product Name"] not in held_out:
                row["description"] = " ".join(generator.choices(words, k=12))

    failed = finetune(shop, changed_catalog(shop, "scrambled", scramble), code=3)
    assert failed["status"] == "failed" and failed["gate"]["verdict"] == "failed"
    assert "floor" in unmet(failed) and failed["publication"] is None
    assert failed["steps"]["evaluate_generations"]["status"] == "completed"
    page = shop.folder / "runs" / failed["run_name"] / "report.html"
    assert "The gate fails this model" in page.read_text()


def test_more_steps_replace_the_champion_and_rollback_restores_it(
    shop: Checkout, first: dict[str, Any]
) -> None:
    """Surely better on the same rows; and back again, which is kept."""
    longer = finetune(shop, "--set=training.max_steps=200")
    assert longer["gate"]["verdict"] == "promoted" and longer["gate"]["champion"] == "1"
    assert champion(shop) == "v2"
    said = shop.run("rollback", "--why", "customers complain").stdout
    assert "the champion was v2 and is v1 now" in said and champion(shop) == "v1"
    assert "v2 -> v1" in shop.run("versions").stdout
    assert "customers complain" in shop.run("versions").stdout.replace("\n", " ")
    again = finetune(shop, "--set=training.max_steps=200")
    assert all(step["cached"] for step in again["steps"].values()) and champion(shop) == "v1"
    shop.run("promote", "v2")
    assert champion(shop) == "v2"
    judged = shop.run("--pipeline", "evaluate", "--version", "v1")
    assert "champion" in judged.stdout and "kept back" in judged.stdout


def test_a_version_is_published_with_a_token_from_zenml(
    shop: Checkout, first: dict[str, Any]
) -> None:
    """Named in the config, kept in ZenML's secret store, and nowhere to be read afterwards."""
    publish = ["--pipeline", "publish", "--version", "v1", "--set", "hub.repo_id=shop/words"]
    publish += ["--set", "hub.token_secret=hub"]
    missing = shop.run(*publish, code=2)
    assert "zenml secret create hub --HF_TOKEN=" in missing.stderr
    with HubServer() as hub:
        create = ["secret", "create", "hub", f"--HF_TOKEN={hub.token}"]
        zenml = Path(sys.executable).with_name("zenml")
        subprocess.run([zenml, *create], cwd=shop.folder, env=shop.environment, check=True)
        done = shop.run(
            *publish, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1"
        )
        assert hub.repos["shop/words"].private and hub.repos["shop/words"].tags["v1"]
    assert hub.token not in done.stdout + done.stderr
    assert "HTTP Request" not in done.stderr
    runs = (shop.folder / "runs").rglob("*")
    assert not [file for file in runs if file.is_file() and hub.token.encode() in file.read_bytes()]


def test_a_champion_on_another_base_is_asked_on_its_own(
    shop: Checkout, first: dict[str, Any]
) -> None:
    """The new base computes the same with its neurons in another order, to which the champion's
    adapter does not fit."""
    other = shop.folder / "other-model"
    shutil.copytree(shop.folder / "demo" / "model", other)
    weights = load_file(other / "model.safetensors")
    for name in [name for name in weights if name.endswith("mlp.gate_proj.weight")]:
        order = torch.randperm(len(weights[name]), generator=torch.Generator().manual_seed(0))
        for part in ("gate_proj", "up_proj"):
            key = name.replace("gate_proj", part)
            weights[key] = weights[key][order].contiguous()
        key = name.replace("gate_proj", "down_proj")
        weights[key] = weights[key][:, order].contiguous()
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    live = champion(shop).removeprefix("v")
    newer = finetune(shop, "--set=model.id=other-model")
    assert newer["base_model"]["revision"] != first["base_model"]["revision"]
    assert newer["gate"]["champion"] == live
    assert newer["metrics"]["base"]["rouge_l"] == pytest.approx(
        first["metrics"]["base"]["rouge_l"], abs=0.03
    )
    assert newer["metrics"]["champion"]["rouge_l"] > 0.9
