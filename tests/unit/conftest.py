"""The demo's catalog and model, ready to be trained for a few steps."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vlmtune.config.loading import load_config
from vlmtune.config.training import PackingConfig

if TYPE_CHECKING:
    from vlmtune.models.adapter import Adapter

ROOT = Path(__file__).resolve().parents[2]
TRAINING = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "max_steps": 6,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "bf16": True,
    "completion_only_loss": True,
    "gradient_checkpointing": False,
}


@dataclass
class Demo:
    """A part of the demo, and how to train on it.

    Attributes:
        catalog, examples: all of it, as the steps hand it over.
    """

    config: Any
    catalog: Any
    examples: Any
    train: Any
    held_out: Any
    base: Any
    folder: Path

    def plan(self, name: str = "run", **changes: Any) -> Any:
        """A plan whose files lie in a folder of its own; its features are shared."""
        from vlmtune.training.plan import TrainingPlan

        options = {**TRAINING, **changes.pop("training", {})}
        lora = {**self.config.lora, "r": 4, "lora_dropout": 0.1, **changes.pop("lora", {})}
        plan = TrainingPlan(
            seed=1,
            lora=lora,
            training=options,
            device="cpu",
            folder=self.folder / name,
            packing=PackingConfig(max_tokens=2_000),
            features=self.folder / "features",
        )
        return replace(plan, **changes)

    def model(self) -> Any:
        """A freshly quantised base and its processor."""
        from vlmtune.models.quantized import quantize

        made = quantize(self.base, self.config.model, self.config.quantization)
        return made.model, made.processor

    def trainer(self, plan: Any, train: Any = None) -> Any:
        """A trainer for this plan."""
        from vlmtune.training.trainer import build_trainer

        model, processor = self.model()
        rows = self.train if train is None else train
        return build_trainer(
            model, processor, self.base, rows, self.held_out, plan, lambda *_: None
        )

    def adapter(self, plan: Any, train: Any = None) -> Any:
        """The adapter that this plan makes."""
        from vlmtune.training.trainer import train_adapter

        model, processor = self.model()
        rows = self.train if train is None else train
        return train_adapter(
            model, processor, self.base, rows, self.held_out, plan, lambda *_: None
        )


@pytest.fixture(scope="session")
def demo_rows(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Demo]:
    """Makes a `Demo` of 48 rows to train on and 8 held out, in a folder."""
    from vlmtune.catalog.loading import load_catalog
    from vlmtune.catalog.source import catalog_version
    from vlmtune.models.base_model import resolve_base_model
    from vlmtune.prompting import format_examples, with_pictures

    here = Path.cwd()
    os.chdir(ROOT)
    try:
        config = load_config(ROOT / "configs" / "demo.yaml", [f"model.id={ROOT}/demo/model"])
        catalog, ledger = load_catalog(config.data, catalog_version(config.data))
        examples = format_examples(catalog, ledger, config.data, config.prompt)
        train = with_pictures(examples.train.select(range(48)), catalog)
        held_out = with_pictures(examples.held_out.select(range(8)), catalog)
        base = resolve_base_model(config.model)
    finally:
        os.chdir(here)
    return lambda folder: Demo(config, catalog, examples, train, held_out, base, folder)


@pytest.fixture
def demo(demo_rows: Callable[[Path], Demo], tmp_path: Path) -> Demo:
    """The demo with an empty folder of its own."""
    return demo_rows(tmp_path)


@pytest.fixture(scope="session")
def trained(
    demo_rows: Callable[[Path], Demo], tmp_path_factory: pytest.TempPathFactory
) -> "tuple[Demo, Adapter]":
    """The demo and an adapter that was trained on it for a few steps; both are left as they are."""
    demo = demo_rows(tmp_path_factory.mktemp("trained"))
    return demo, demo.adapter(demo.plan())
