"""Configs are read as they are written, and each mistake is named with its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vlmtune.config.loading import dump_config, load_config
from vlmtune.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
Values = dict[str, Any]
WriteConfig = Callable[..., Path]


def problem_of(path: Path, *overrides: str) -> str:
    """The message with which a config is refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def line_of(path: Path, text: str) -> int:
    """Number of the only line that holds a text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if text in line]
    return number


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_config_round_trips(path: Path, write_config: WriteConfig) -> None:
    """Each shipped config is valid, and its dump reads back to the very same tree."""
    config = load_config(path)
    assert load_config(write_config(dump_config(config))) == config


def test_demo_config_is_shipped() -> None:
    """The default of --config is among the shipped ones."""
    assert "demo.yaml" in [path.name for path in SHIPPED]


def test_values_arrive(config_values: Values, write_config: WriteConfig) -> None:
    """What stands in the file is what the tree holds, defaults elsewhere."""
    config_values["seed"] = 7
    config = load_config(write_config(config_values))
    assert config.seed == 7
    assert config.data.source == config_values["data"]["source"]
    assert config.lora == {"r": 4}
    assert config.merge.enabled is True
    assert config.generation["max_new_tokens"] == 256


@pytest.mark.parametrize(
    ("section", "key", "near"),
    [
        (None, "traning", "training"),
        ("data", "sorce", "source"),
        ("hub", "repoid", "repo_id"),
        ("training", "learning_rat", "learning_rate"),
        ("lora", "lora_aplha", "lora_alpha"),
        ("quantization", "load_in_4bits", "load_in_4bit"),
        ("generation", "max_new_token", "max_new_tokens"),
    ],
)
def test_unknown_key(
    config_values: Values, write_config: WriteConfig, section: str | None, key: str, near: str
) -> None:
    """File, line, key and the nearest valid key are named."""
    values = config_values.setdefault(section, {}) if section else config_values
    values[key] = 1
    path = write_config(config_values)
    problem = problem_of(path)
    dotted = f"{section}.{key}" if section else key
    assert problem.startswith(f"{path}:{line_of(path, key + ':')}: {dotted}: ")
    assert f"did you mean '{near}'?" in problem


def test_unknown_key_near_nothing(config_values: Values, write_config: WriteConfig) -> None:
    """A key that is near nothing lists what there is."""
    config_values["merge"] = {"zzz": 1}
    assert "unknown key; known here: enabled" in problem_of(write_config(config_values))


def test_all_problems_at_once(config_values: Values, write_config: WriteConfig) -> None:
    """Two mistakes in two sections are told in one go, a line each."""
    config_values["data"]["max_rows"] = 0
    config_values["model"]["device"] = "tpu"
    lines = problem_of(write_config(config_values)).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["data.max_rows", "model.device"]


def test_missing_key(config_values: Values, write_config: WriteConfig) -> None:
    """A missing key is named with the line of the section it belongs to."""
    del config_values["model"]["id"]
    path = write_config(config_values)
    assert problem_of(path) == f"{path}:{line_of(path, 'model:')}: model.id: this key is missing"


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("seed=soon", "integer"),
        ("model.trust_remote_code=maybe", "boolean"),
        ("data.held_out.fraction=1.5", "less than 1"),
        ("hub=", "dictionary"),
        ("hub.push=[]", "at least 1"),
        ("hub.push=[weights]", "'adapter' or 'merged'"),
        ("training.max_steps=many", "takes int"),
        ("training.bf16=[1]", "takes bool"),
        ("lora=8", "a mapping of peft.LoraConfig options is expected"),
    ],
)
def test_wrong_type(
    config_values: Values, write_config: WriteConfig, override: str, word: str
) -> None:
    """A value of the wrong type or size names its key and what is expected."""
    problem = problem_of(write_config(config_values), override)
    assert problem.startswith(f"--set {override}: ")
    assert override.partition("=")[0] in problem.removeprefix(f"--set {override}")
    assert word in problem


def test_exponents_are_floats(config_values: Values, write_config: WriteConfig) -> None:
    """`2e-4`, which YAML 1.1 reads as text, is a float where TRL takes one."""
    path = write_config(config_values)
    path.write_text(path.read_text().replace("max_steps: 1", "learning_rate: 2e-4"))
    rate = load_config(path).training["learning_rate"]
    assert type(rate) is float
    assert rate == 0.0002


def test_exponents_inside_a_mapping_are_floats(
    config_values: Values, write_config: WriteConfig
) -> None:
    """TRL would hand them on as the text that they are for YAML 1.1."""
    override = "training.lr_scheduler_kwargs={min_lr: 1e-6, steps: [2e3, 7], name: e5}"
    config = load_config(write_config(config_values), [override])
    assert config.training["lr_scheduler_kwargs"] == {
        "min_lr": 1e-6,
        "steps": [2000.0, 7],
        "name": "e5",
    }


def test_counts_stay_counts(config_values: Values, write_config: WriteConfig) -> None:
    """An int given to a float option stays an int: TRL tells a count from a share by it."""
    options = {"warmup_steps": 500, "save_steps": 0.5, "eval_steps": 50}
    config_values["training"] = options
    training = load_config(write_config(config_values)).training
    assert training == options
    assert [type(value) for value in training.values()] == [int, float, int]


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [
        ("output_dir", "here", "output.work_dir"),
        ("seed", 1, "top-level seed"),
        ("hub_token", "hf_x", "HF_TOKEN"),
        ("packing", True, "cannot pack picture rows"),
        ("report_to", "wandb", "MLflow"),
    ],
)
def test_owned_option(
    config_values: Values, write_config: WriteConfig, option: str, value: Any, instead: str
) -> None:
    """An option that vlmtune sets itself says where to set it instead."""
    config_values["training"][option] = value
    path = write_config(config_values)
    problem = problem_of(path)
    assert problem.startswith(f"{path}:{line_of(path, ' ' + option + ':')}: training.{option}: ")
    assert instead in problem


def test_override_wins(config_values: Values, write_config: WriteConfig) -> None:
    """--set replaces a value, makes missing sections, and reads its value as YAML."""
    overrides = ["seed=7", "training.learning_rate=1e-4", "hub.push=[merged]", "data.max_rows=2"]
    config = load_config(write_config(config_values), overrides)
    assert (config.seed, config.training["learning_rate"]) == (7, 0.0001)
    assert (config.hub.push, config.data.max_rows) == (["merged"], 2)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed", "key=value is expected"),
        ("=7", "key=value is expected"),
        ("seed=[1", "no valid YAML"),
        ("data.source.x=1", "'source' is no section"),
        ("sead=7", "did you mean 'seed'?"),
        ("training.learning_rat=1", "did you mean 'learning_rate'?"),
    ],
)
def test_override_that_cannot_be_used(
    config_values: Values, write_config: WriteConfig, override: str, problem: str
) -> None:
    """A wrong --set is named as it was given."""
    found = problem_of(write_config(config_values), override)
    assert found.startswith(f"--set {override}: ")
    assert problem in found


def test_key_given_twice(write_config: WriteConfig) -> None:
    """YAML would silently keep the last of two equal keys."""
    path = write_config("seed: 1\nhub:\n  private: true\n  private: false\n")
    assert problem_of(path) == f"{path}: line 4: the key 'private' is given twice"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("seed: [1", "no valid YAML"),
        ("- seed", "a mapping of sections is expected"),
        ("", "a mapping of sections is expected"),
        ("? [a, b]\n: 1\n", "no valid YAML"),
    ],
)
def test_no_mapping(write_config: WriteConfig, content: str, problem: str) -> None:
    """A file that is no YAML mapping is refused by name."""
    path = write_config(content)
    found = problem_of(path)
    assert problem in found
    assert str(path) in found


def test_not_utf8(tmp_path: Path) -> None:
    """A file in another encoding says so."""
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"prompt:\n  system: Gr\xfcn\n")
    assert f"{path} is no UTF-8 text" in problem_of(path)


def test_missing_file(tmp_path: Path) -> None:
    """A config that is not there names the option that picks one."""
    problem = problem_of(tmp_path / "none.yaml")
    assert f"cannot read the config {tmp_path / 'none.yaml'}" in problem
    assert "--config" in problem


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("prompt.template=Describe {colour}.", "the field {colour}, which data.columns lacks"),
        ("prompt.template=Copy {description}.", "gives the answer away"),
        ("prompt.template=Describe {image}.", "the field {image}, which data.columns lacks"),
        ("prompt.template=Describe {name!r}.", "{name} is no field name"),
        ("prompt.template=Describe {}.", "{} is no field name"),
        ("prompt.template='Describe {name'", "expected '}'"),
        ("evaluation.copied_fields=[colour]", "'colour', which data.columns lacks"),
        ("data.held_out.by=colour", "'colour', which data.columns lacks"),
        ("data.held_out.by=image", "no text to group rows by"),
        ("data.columns={image: a, name: b}", "'description' must be mapped"),
        ("data.columns={description: a, name: b}", "'image' must be mapped"),
        ("data.columns={image: a, description: b, row_id: c}", "vlmtune's own"),
    ],
)
def test_fields_must_fit(
    config_values: Values, write_config: WriteConfig, override: str, problem: str
) -> None:
    """Sections that contradict each other are refused before anything runs."""
    assert problem in problem_of(write_config(config_values), override)


def test_plain_braces_in_a_template(config_values: Values, write_config: WriteConfig) -> None:
    """Doubled braces are no field."""
    config = load_config(write_config(config_values), ["prompt.template='{{x}} {name} {name}'"])
    assert config.prompt.fields == ["name"]


def test_merged_push_needs_a_merge(config_values: Values, write_config: WriteConfig) -> None:
    """Pushing a merged model that is not made is refused, but only if anything is pushed."""
    config_values["merge"] = {"enabled": False}
    config_values["hub"] = {"push": ["adapter", "merged"]}
    path = write_config(config_values)
    assert load_config(path).hub.repo_id is None
    assert "merge.enabled is false" in problem_of(path, "hub.repo_id=me/mugs")


def test_frozen(config_values: Values, write_config: WriteConfig) -> None:
    """No part of the tree can be set after it was checked."""
    config = load_config(write_config(config_values))
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.data.held_out.fraction = 0.2
