"""The demo's pretrained model and a few rows to describe with it."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmtune.config.data import PromptConfig
from vlmtune.config.model import ModelConfig
from vlmtune.prompting import build_prompt

MODEL = Path(__file__).resolve().parents[3] / "demo" / "model"


@pytest.fixture(scope="session")
def demo_model() -> tuple[Any, Any]:
    """Model and processor, in fp32, so that no padding changes a text."""
    from transformers import AutoModelForImageTextToText

    from vlmtune.models.processor import load_processor

    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype="float32")
    return model, load_processor(str(MODEL), None, ModelConfig(id=str(MODEL)))


@pytest.fixture(scope="session")
def questions() -> Any:
    """Seven rows with prompts of different lengths and pictures of different colours."""
    from datasets import Dataset

    prompt = PromptConfig(
        system="You write product descriptions for our shop.",
        template="Describe this product for our shop.\n##PRODUCT NAME##: {name}",
    )
    prompts = [build_prompt(prompt, {"name": "Nibu " * (1 + n % 4)}) for n in range(7)]
    rows = Dataset.from_dict({"row": list(range(7)), "prompt": prompts})

    def transform(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        colours = [(number * 35, 80, 200 - number * 25) for number in batch["row"]]
        return {**batch, "images": [[Image.new("RGB", (84, 84), each)] for each in colours]}

    return rows.with_transform(transform)
