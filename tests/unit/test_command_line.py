"""The command line is quick, and says in one line what is to be mended."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmtune.config.loading import load_config

ROOT = Path(__file__).resolve().parents[2]
Done = subprocess.CompletedProcess[str]
RunPython = Callable[..., Done]
HEAVY = ("torch", "transformers", "trl", "zenml", "mlflow", "datasets", "pydantic", "pandas")


@pytest.fixture
def run_main(run_python: RunPython) -> Callable[..., Done]:
    """`python run.py ...`, without a network."""

    def run(*arguments: str) -> Done:
        return run_python("run.py", *arguments, env={"HF_HUB_OFFLINE": "1"})

    return run


def assert_one_clear_error(done: Done) -> str:
    """Exit code 2 and one line of error, which is returned."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_help_is_quick() -> None:
    """Help takes well under a second, with no heavy package imported."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "run.py", "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "Exit codes: 0 done; 1 a step failed; 2 something to mend" in text
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & set(HEAVY)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pipeline", "finetun"], ["invalid choice", "finetune"]),
        ([], ["--pipeline"]),
        (["--pipeline", "finetune", "--sched", "0 3 * * 1"], ["unrecognized", "--sched"]),
        (["lineage"], ["name"]),
        (["init"], ["FOLDER"]),
        (["--pipeline", "check", "--model-run", "runs/x"], ["goes with --pipeline describe only"]),
        (["--pipeline", "describe", "--model-run", "none"], ["there is no finished run at none"]),
    ],
    ids=[
        "unknown pipeline",
        "no pipeline",
        "abbreviation",
        "lineage of nothing",
        "init of nothing",
        "a model to check with",
        "a model of no run",
    ],
)
def test_usage(run_main: Callable[..., Done], arguments: list[str], words: list[str]) -> None:
    """A command line that cannot be parsed names what is valid."""
    done = run_main(*arguments)
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_config(run_main: Callable[..., Done]) -> None:
    """A config that is not there."""
    error = assert_one_clear_error(run_main("--pipeline", "finetune", "--config", "none.yaml"))
    assert "cannot read the config none.yaml" in error


def test_misspelt_key(
    run_main: Callable[..., Done], config_values: dict[str, Any], write_config: Callable[..., Path]
) -> None:
    """A wrong key on the command line."""
    path = str(write_config(config_values))
    done = run_main("--pipeline", "finetune", "--config", path, "--set", "sead=1")
    assert "did you mean 'seed'?" in assert_one_clear_error(done)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("data.source", "/none/catalog", "no such catalog folder: /none/catalog"),
        ("model.id", "/none/model", "no such model folder: /none/model"),
        ("data.source", "shop/mugs", "data.source: shop/mugs is no folder here"),
        ("model.id", "shop/base", "model.id: shop/base is no folder here"),
    ],
)
def test_missing_source(
    run_main: Callable[..., Done],
    config_values: dict[str, Any],
    write_config: Callable[..., Path],
    key: str,
    value: str,
    problem: str,
) -> None:
    """Catalog and base model are looked for before anything else is done."""
    path = str(write_config(config_values))
    done = run_main("--pipeline", "finetune", "--config", path, "--set", f"{key}={value}")
    assert problem in assert_one_clear_error(done)


def test_dry_run(
    run_main: Callable[..., Done], config_values: dict[str, Any], write_config: Callable[..., Path]
) -> None:
    """The plan is printed and nothing is written."""
    path = write_config(config_values)
    before = sorted(path.parent.rglob("*"))
    done = run_main("--pipeline", "finetune", "--config", str(path), "--dry-run", "--set=seed=7")
    assert done.returncode == 0, done.stderr
    assert "seed: 7" in done.stdout
    assert "leave ready to push" in done.stdout
    assert sorted(path.parent.rglob("*")) == before


def test_a_catalog_without_descriptions_is_not_trained_on(
    run_main: Callable[..., Done], config_values: dict[str, Any], write_config: Callable[..., Path]
) -> None:
    """There is nothing to learn from it."""
    del config_values["data"]["columns"]["description"]
    path = str(write_config(config_values | {"data": config_values["data"] | {"described": False}}))
    done = run_main("--pipeline", "finetune", "--config", path, "--dry-run")
    assert "data.described is false" in assert_one_clear_error(done)


def test_field_without_a_value(run_main: Callable[..., Done]) -> None:
    """`run.py try --field` wants FIELD=TEXT."""
    done = run_main("try", "mug.jpg", "--field", "colour")
    assert "--field colour: FIELD=TEXT is expected" in assert_one_clear_error(done)


# init ----------------------------------------------------------------------------------------


def test_init_teaches(run_main: Callable[..., Done]) -> None:
    """Its help says what it does, by examples, and what comes next."""
    done = run_main("init", "--help")
    assert done.returncode == 0
    for words in ("FOLDER", "--like", "--force", "run.py init shop", "--pipeline check"):
        assert words in done.stdout


def test_init(
    run_python: RunPython,
    run_main: Callable[..., Done],
    make_catalog: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """The config is written to the current folder, and its source leads from there."""
    make_catalog(name="shop")
    like = ROOT / "configs" / "demo.yaml"
    command = [str(ROOT / "run.py"), "init", "shop/", "--like", str(like)]
    done = run_python("-X", "importtime", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("Product Name", "Mug 1", "run.py --pipeline check --config shop.yaml"):
        assert words in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "yaml" in imported
    assert not imported & (set(HEAVY) - {"pydantic"})
    config = load_config(tmp_path / "shop.yaml")
    assert config.data.source == "shop"
    dry = run_python(
        *(str(ROOT / "run.py"), "--pipeline", "check", "--config", "shop.yaml", "--dry-run"),
        *("--set", f"model.id={ROOT / 'demo' / 'model'}"),
        cwd=tmp_path,
    )
    assert dry.returncode == 0, dry.stderr
    assert "source: shop" in dry.stdout


def test_init_keeps_what_is_there(
    run_main: Callable[..., Done], make_catalog: Callable[..., Path], tmp_path: Path
) -> None:
    """Without --force nothing is written over."""
    output = tmp_path / "mine.yaml"
    output.write_text("mine")
    command = ["init", str(make_catalog()), "--output", str(output)]
    error = assert_one_clear_error(run_main(*command))
    assert f"{output} is already there. Add --force" in error
    assert output.read_text() == "mine"
    assert run_main(*command, "--force").returncode == 0
    assert load_config(output).data.held_out.by == "name"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["none"], "none is no catalog here"),
        (["configs"], "configs holds no metadata file"),
        (["demo/catalog", "--like", "none.yaml"], "cannot read the config none.yaml"),
    ],
)
def test_init_of_nothing(
    run_main: Callable[..., Done], tmp_path: Path, arguments: list[str], problem: str
) -> None:
    """What is missing is told in one line."""
    output = tmp_path / "new.yaml"
    done = run_main("init", *arguments, "--output", str(output))
    assert problem in assert_one_clear_error(done)
    assert not output.exists()


# Too small a machine -------------------------------------------------------------------------

# One process for both, for the time that ZenML takes to set up a fresh stack.
TOO_SMALL_MACHINES = """
import contextlib, io, json, shutil, sys
import run

arguments = ["--pipeline", "finetune", "--config", sys.argv[1]]

def outcome(*more):
    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        code = run.main([*arguments, *more])
    return code, out.getvalue()

real = shutil.disk_usage
shutil.disk_usage = lambda path: real(path)._replace(free=1000)
disk = outcome()
shutil.disk_usage = real
gpu = outcome("--set", "model.device=cuda")
print(json.dumps({"disk": disk, "gpu": gpu}))
"""


def test_too_small_a_machine(
    run_python: RunPython,
    config_values: dict[str, Any],
    write_config: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """A full disk and a missing GPU are told before a run is begun."""
    home = tmp_path / "home"
    env = {"ZENML_CONFIG_PATH": str(home), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    script = tmp_path / "machines.py"
    script.write_text(TOO_SMALL_MACHINES)
    done = run_python(str(script), str(write_config(config_values)), env=env)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    problems = {
        "disk": "error: the artifacts need about 0.2 GiB, but only 0.0 GiB are free",
        "gpu": "error: model.device is cuda, but there is no usable GPU here.",
    }
    for name, problem in problems.items():
        code, output = outcomes[name]
        assert code == 2, output
        assert "Traceback" not in output
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, output
        assert errors[0].startswith(problem)
    assert not (tmp_path / "runs").exists()
