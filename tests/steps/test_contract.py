"""What every step promises: its name, a materializer of ours, a cache key that knows its code."""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from zenml.config.source import Source
from zenml.utils.source_utils import set_custom_source_root

from vlmtune.tracking.code_version import code_version

STEPS = (
    "load_dataset",
    "report_catalog",
    "format_messages",
    "load_quantized_model",
    "train_qlora",
    "evaluate_generations",
    "merge_adapter",
    "push_to_hub",
)
ALL_STEPS = (*STEPS, "describe_catalog")


@pytest.fixture(autouse=True, scope="module")
def as_from_run_py(root: Path) -> Iterator[None]:
    """ZenML looks for sources beside the main module, and a worker of pytest has none."""
    set_custom_source_root(str(root))
    yield
    set_custom_source_root(None)


@pytest.mark.parametrize("name", ALL_STEPS)
def test_no_output_falls_back_to_pickle(name: str) -> None:
    """What is no HTML page and no plain JSON would be pickled without a materializer of ours."""
    step = getattr(importlib.import_module(f"steps.{name}"), name)
    for output, annotation in step.entrypoint_definition.outputs.items():
        materializers = (
            step.configuration.outputs[output].materializer_source
            if (output in step.configuration.outputs)
            else None
        )
        if materializers is None:
            kind = annotation.resolved_annotation
            assert kind.__name__ in ("HTMLString", "dict"), output
        else:
            assert all(source.import_path.startswith("materializers.") for source in materializers)


@pytest.mark.parametrize("name", ALL_STEPS)
def test_cache_key_follows_the_code_of_the_step(name: str) -> None:
    """The cache function is the fingerprint of the step's own module and its imports."""
    module = importlib.import_module(f"steps.{name}")
    step = getattr(module, name)
    source = step.configuration.cache_policy.cache_func
    assert isinstance(source, Source)
    assert source.import_path == f"steps.{name}.{name}_code"
    assert getattr(module, f"{name}_code")() == code_version(f"steps.{name}")


def test_pipeline_reads_like_the_diagram() -> None:
    """Wiring only, in the order of the steps."""
    from pipelines.finetune import finetune
    from pipelines.rows import checked_rows, read_rows

    parts = (read_rows, checked_rows, finetune.entrypoint)
    source = "".join(inspect.getsource(part) for part in parts)
    positions = [
        source.index(f"= {name}") if f"= {name}" in source else source.index(name) for name in STEPS
    ]
    assert positions == sorted(positions)
