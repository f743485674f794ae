"""What is stored is what is used, from end to end: bytes are flipped and files removed between
runs, and each command that reads them ends with one line that says which file it is.

python -m pytest -m slow tests/pipelines/test_stored_bytes.py
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import SMALL, Checkout

pytestmark = pytest.mark.slow
NEW_CONFIG = """
data:
  source: {catalog}
  max_rows: 4
  columns: {{image: file_name, name: Product Name, category: Category}}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout with a store of its own."""
    folder = tmp_path_factory.mktemp("bytes")
    yield Checkout(folder)
    shutil.rmtree(folder, ignore_errors=True)


def finetune(shop: Checkout) -> tuple[str, ...]:
    """The command, all of whose paths are absolute."""
    folder = shop.folder
    return (
        *("--pipeline", "finetune", *SMALL),
        f"--set=data.source={folder}/demo/catalog",
        f"--set=model.id={folder}/demo/model",
        f"--set=output.runs_dir={folder}/runs",
        f"--set=output.work_dir={folder}/.vlmtune",
    )


@pytest.fixture(scope="module")
def first(shop: Checkout) -> dict[str, Any]:
    """A run whose artifacts all later ones take from the cache."""
    shop.run(*finetune(shop))
    (shop.folder / "new.yaml").write_text(
        NEW_CONFIG.format(catalog=shop.folder / "demo" / "catalog")
    )
    return shop.summary()


def largest_file(first: dict[str, Any], artifact: str) -> Path:
    """The one that a damaged disk is likeliest to hit; the manifest apart."""
    folder = Path(first["artifacts"][artifact]["uri"])
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "files.json"]
    return max(files, key=lambda path: path.stat().st_size)


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    """Within the block one bit in the middle of the file is another."""
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(content)


@contextmanager
def gone(path: Path) -> Iterator[None]:
    """Within the block there is no such file or folder."""
    aside = path.rename(path.with_name(f"{path.name}.aside"))
    try:
        yield
    finally:
        aside.rename(path)


def refuse(shop: Checkout, *command: str) -> str:
    """Run a command that must end with exit code 2 and one line; returns the line."""
    done = shop.run(*command, code=2)
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return line


def test_what_is_ready_to_push_tells_nothing_of_the_machine(
    shop: Checkout, first: dict[str, Any]
) -> None:
    """No folder of the run in any file but weights; modes as the umask gives them; the gate's
    options of generation."""
    publish = shop.folder / "runs" / first["run_name"] / "publish"
    files = [path for path in publish.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {"adapter", "merged"}
    plain = shop.folder / "plain"
    plain.touch()
    private = (str(shop.folder), str(shop.home), str(Path.home()))
    for path in files:
        assert path.stat().st_mode == plain.stat().st_mode, path
        if path.suffix != ".safetensors":
            text = path.read_text()
            assert not [folder for folder in private if folder in text], path
    adapter = json.loads((publish / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "model"
    generation = json.loads((publish / "merged" / "generation_config.json").read_text())
    assert (generation["do_sample"], generation["max_new_tokens"]) == (False, 8)


def test_a_flipped_byte_of_a_cached_artifact_is_noticed(
    shop: Checkout, first: dict[str, Any]
) -> None:
    """Whatever kind it is of, and whether or not a step reads it."""
    names = list(first["artifacts"])
    for name in names:
        path = largest_file(first, name)
        with flipped(path):
            line = refuse(shop, *finetune(shop))
        assert f"{path} is changed" in line and "--no-cache" in line
        assert shop.summary()["status"] == "failed"
    shop.run(*finetune(shop))
    assert shop.executed() == set()
    print(f"{len(names)} bytes flipped in {len(names)} artifacts, all noticed")


def test_a_cached_artifact_that_is_gone_is_noticed(shop: Checkout, first: dict[str, Any]) -> None:
    """Its folder, of each kind, ZenML's own too; or one file of it."""
    for artifact in first["artifacts"].values():
        with gone(Path(artifact["uri"])):
            line = refuse(shop, *finetune(shop))
        assert artifact["uri"] in line and "--no-cache" in line
    path = largest_file(first, "merged_model")
    with gone(path):
        line = refuse(shop, *finetune(shop))
    assert f"{path} is missing" in line and "--no-cache" in line
    print(f"{len(first['artifacts'])} folders and 1 file removed, all noticed")


def test_every_command_notices_what_it_reads(shop: Checkout, first: dict[str, Any]) -> None:
    """A flipped byte in what is tried, described with, judged again or published."""
    run = f"runs/{first['run_name']}"
    picture = str(next((shop.folder / "demo" / "catalog" / "images").iterdir()))
    product = ("--name", "Mug", "--category", "Kitchen", "--run", run)
    options = [option for option in finetune(shop) if option.startswith("--set=")]
    describe = ("--pipeline", "describe", "--config", "new.yaml")
    commands = {
        ("try", picture, *product): ("quantized_model", "adapter", "merged_model"),
        (*describe, "--model-run", run): ("merged_model",),
        ("--pipeline", "evaluate", "--version", "v1", *options): (
            *("catalog", "examples", "quantized_model", "adapter"),
        ),
        ("--pipeline", "publish", "--version", "v1", *options): (
            *("catalog", "ledger", "adapter", "merged_model"),
            *("merged_evaluation", "merged_decision"),
        ),
    }
    flips = 0
    for command, names in commands.items():
        for name in names:
            path = largest_file(first, name)
            with flipped(path):
                assert f"{path} is changed" in refuse(shop, *command)
            flips += 1
        shop.run(*command)
    print(f"{flips} bytes flipped for {len(commands)} commands, all noticed")


def test_an_artifact_that_zenml_does_not_know_is_named(
    shop: Checkout, first: dict[str, Any], tmp_path: Path
) -> None:
    """As after a change of ZenML's store: exit code 2, and no stack trace."""
    folder = shutil.copytree(shop.folder / "runs" / first["run_name"], tmp_path / "run")
    unknown = "00000000-0000-4000-8000-000000000000"
    summary = (folder / "summary.json").read_text()
    known = first["artifacts"]["quantized_model"]["id"]
    (folder / "summary.json").write_text(summary.replace(known, unknown))
    picture = str(next((shop.folder / "demo" / "catalog" / "images").iterdir()))
    product = ("--name", "Mug", "--category", "Kitchen", "--run", str(folder))
    assert f"ZenML has no artifact {unknown}" in refuse(shop, "try", picture, *product)


def test_an_edit_of_the_laid_out_weights_is_noticed(shop: Checkout, first: dict[str, Any]) -> None:
    """They share their blocks with the store; the texts beside them are copies."""
    publish = shop.folder / "runs" / first["run_name"] / "publish"
    stored = Path(first["artifacts"]["merged_model"]["uri"]) / "model" / "model.safetensors"
    with flipped(publish / "merged" / "model.safetensors"):
        assert f"{stored} is changed" in refuse(shop, *finetune(shop))
    with flipped(publish / "adapter" / "adapter_config.json"):
        shop.run(*finetune(shop))


def test_no_cache_makes_it_anew(shop: Checkout, first: dict[str, Any]) -> None:
    """As the message says."""
    shutil.rmtree(first["artifacts"]["adapter"]["uri"])
    refuse(shop, *finetune(shop))
    shop.run(*finetune(shop), "--no-cache")
    assert shop.summary()["adapter_hash"] == first["adapter_hash"]
    shop.run(*finetune(shop))
    assert shop.executed() == set()
