"""The catalog from one config, all else from the run that trained the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmtune.config.loading import dump_config, load_config, load_describing_config
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import ConfigError

WriteConfig = Callable[..., Path]


@pytest.fixture
def trained(config_values: dict[str, Any], write_config: WriteConfig) -> FinetuneConfig:
    """The config of a run, with a prompt and rules of its own."""
    config_values["generation"] = {"max_new_tokens": 40}
    config_values["evaluation"] = {"copied_fields": ["name"], "rules": {"max_length": 300}}
    return load_config(write_config(config_values, "trained.yaml"))


@pytest.fixture
def new_catalog(write_config: WriteConfig) -> Path:
    """A config with nothing but a catalog without descriptions."""
    columns = {"image": "photo", "name": "Title", "category": "Kind", "brand": "Brand"}
    return write_config({"data": {"source": "new", "columns": columns}}, "new.yaml")


def test_a_catalog_is_enough(trained: FinetuneConfig, new_catalog: Path) -> None:
    """Prompt, model, generation and rules are the run's."""
    config = load_describing_config(new_catalog, trained)
    assert (config.data.source, config.data.columns["brand"]) == ("new", "Brand")
    for section in ("prompt", "model", "generation", "quantization"):
        assert getattr(config, section) == getattr(trained, section)
    assert config.evaluation.rules.max_length == 300
    assert config.output == FinetuneConfig.model_fields["output"].default


def test_a_config_for_training_will_do(
    trained: FinetuneConfig, config_values: dict[str, Any], write_config: WriteConfig
) -> None:
    """Its descriptions, rules on them and split are left aside, and its other sections too."""
    config_values["prompt"]["template"] = "Another prompt for {name}."
    config_values["generation"] = {"max_new_tokens": 7}
    config_values["data"]["contract"] = {
        "texts": {"description": {"min_length": 20}, "name": {"max_length": 9}}
    }
    config_values["data"]["more_sources"] = [
        {"source": "a"},
        {"source": "b", "columns": config_values["data"]["columns"]},
    ]
    config = load_describing_config(write_config(config_values), trained)
    data = config.data
    assert set(data.columns) == {"image", "name", "category"}
    assert all(set(source.columns or {}) == set(data.columns) for source in data.all_sources)
    assert set(data.contract.texts) == {"name"}
    assert (data.described, data.previous, data.held_out.by) == (False, None, None)
    assert config.prompt == trained.prompt
    assert config.generation == {"max_new_tokens": 40}
    assert config.output.runs_dir == Path(config_values["output"]["runs_dir"])


def test_it_round_trips(
    trained: FinetuneConfig, new_catalog: Path, write_config: WriteConfig
) -> None:
    """What is kept with the run reads back to the same tree."""
    config = load_describing_config(new_catalog, trained)
    assert load_config(write_config(dump_config(config), "resolved.yaml")) == config


def test_overrides_win_over_both(trained: FinetuneConfig, new_catalog: Path) -> None:
    """Also over what the run has decided: whoever says so means it."""
    overrides = ["generation.max_new_tokens=9", "data.max_rows=2", "describe.batch_size=4"]
    config = load_describing_config(new_catalog, trained, overrides)
    assert config.generation == {"max_new_tokens": 9}
    assert (config.data.max_rows, config.describe.batch_size) == (2, 4)


@pytest.mark.parametrize(
    ("values", "override", "problem"),
    [
        ({}, "seed=1", "data: this key is missing"),
        ({"describ": {}}, "data={source: a, columns: {image: b}}", "did you mean 'describe'?"),
        ({"data": {"source": "a", "columns": {"image": "b"}}}, "seed=1", "the field {name}"),
        ({"data": {"source": "a", "columns": {"name": "b"}}}, "seed=1", "'image' must be mapped"),
        ({"data": []}, "seed=1", "data: Input should be a valid dictionary"),
        ({}, "describe.engine=triton", "'transformers' or 'vllm'"),
        ({}, "describe.batch_size=0", "greater than 0"),
    ],
)
def test_what_cannot_be_used(
    trained: FinetuneConfig,
    write_config: WriteConfig,
    values: dict[str, Any],
    override: str,
    problem: str,
) -> None:
    """Named as in any other config."""
    with pytest.raises(ConfigError) as caught:
        load_describing_config(write_config(values or {"seed": 3}, "x.yaml"), trained, [override])
    assert problem in str(caught.value)


def test_batch_sizes(config_values: dict[str, Any], write_config: WriteConfig) -> None:
    """A number, or auto."""
    path = write_config(config_values)
    assert load_config(path).evaluation.batch_size == 16
    assert load_config(path, ["evaluation.batch_size=auto"]).evaluation.batch_size == "auto"
    for wrong in ("0", "many"):
        with pytest.raises(ConfigError):
            load_config(path, [f"evaluation.batch_size={wrong}"])
