"""What the model is trained on, token by token, with the demo's real processor."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmtune.config.data import PromptConfig
from vlmtune.config.model import ModelConfig
from vlmtune.prompting import build_completion, build_prompt

MODEL = Path(__file__).resolve().parents[2] / "demo" / "model"
DESCRIPTIONS = ("A mug.", "A rather longer description of a vase, with more words.")


@pytest.fixture(scope="module")
def processor() -> Any:
    """The processor of the demo's model."""
    from vlmtune.models.processor import load_processor

    return load_processor(str(MODEL), None, ModelConfig(id=str(MODEL)))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Two rows of different lengths, as the trainer hands them to the collator."""
    prompt = PromptConfig(system="You write.", template="Describe {name}.")
    return [
        {
            "prompt": build_prompt(prompt, {"name": f"Mug {number}"}),
            "completion": build_completion(text),
            "images": [Image.new("RGB", (40, 40), (number * 90, 10, 10))],
        }
        for number, text in enumerate(DESCRIPTIONS)
    ]


def collate(processor: Any, rows: list[dict[str, Any]], completion_only: bool) -> dict[str, Any]:
    """One batch as the trainer sees it."""
    from vlmtune.encoding import CatalogCollator

    copies = [dict(row) for row in rows]
    return CatalogCollator(processor=processor, completion_only_loss=completion_only)(copies)


def targets(processor: Any, batch: dict[str, Any], row: int) -> str:
    """The text of a row's target tokens."""
    labels = batch["labels"][row]
    return processor.tokenizer.decode(labels[labels != -100])


def test_only_the_answer_is_a_target(processor: Any, rows: list[dict[str, Any]]) -> None:
    """The description and the end of the turn, and nothing of prompt, picture or padding."""
    batch = collate(processor, rows, completion_only=True)
    for row, text in enumerate(DESCRIPTIONS):
        assert targets(processor, batch, row) == f"{text}<|im_end|>\n"


def test_published_loss_is_on_the_prompt_too_but_never_on_pictures(
    processor: Any, rows: list[dict[str, Any]]
) -> None:
    """Every token but padding and the placeholders of picture pieces."""
    from vlmtune.encoding import picture_token_ids

    batch = collate(processor, rows, completion_only=False)
    picture = picture_token_ids(processor)
    assert picture == [processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")]
    assert (batch["input_ids"] == picture[0]).sum() == 18  # nine a picture
    for row, text in enumerate(DESCRIPTIONS):
        words = targets(processor, batch, row)
        assert "<|image_pad|>" not in words
        assert "You write." in words and f"Describe Mug {row}." in words and text in words
    scored = (batch["labels"] != -100).sum()
    assert scored == (batch["attention_mask"] == 1).sum() - 18


def test_generation_sees_the_tokens_and_pixels_of_training(
    processor: Any, rows: list[dict[str, Any]]
) -> None:
    """A prompt at evaluation is exactly what stood before the answer in training."""
    import torch

    from vlmtune.encoding import encode_prompts

    for row in rows:
        trained = collate(processor, [row], completion_only=True)
        asked = encode_prompts(processor, [row["prompt"]], [row["images"]])
        before_answer = trained["input_ids"][0][trained["labels"][0] == -100]
        assert torch.equal(asked["input_ids"][0], before_answer)
        assert torch.equal(asked["pixel_values"], trained["pixel_values"])


def test_prompts_are_padded_on_the_left(processor: Any, rows: list[dict[str, Any]]) -> None:
    """The answer has to follow the prompt, not the padding."""
    from vlmtune.encoding import encode_prompts

    prompts = [row["prompt"] for row in rows]
    prompts[1] = [{"role": "user", "content": "Describe this product. " * 10}]
    asked = encode_prompts(processor, prompts, [row["images"] for row in rows])
    assert asked["attention_mask"][0][0] == 0
    assert asked["attention_mask"][:, -1].tolist() == [1, 1]


def test_picture_limits_are_set_and_saved(processor: Any, tmp_path: Path) -> None:
    """model.max_pixels changes the number of picture tokens, and travels with the processor."""
    from vlmtune.encoding import encode_prompts
    from vlmtune.models.processor import load_processor

    config = ModelConfig(id=str(MODEL), min_pixels=56 * 56, max_pixels=56 * 56)
    load_processor(str(MODEL), None, config).save_pretrained(tmp_path)
    limited = load_processor(str(tmp_path), None, ModelConfig(id=str(tmp_path)))
    prompt = [[{"role": "user", "content": "What is it?"}]]
    picture = [[Image.new("RGB", (400, 400))]]
    token = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    tokens = encode_prompts(limited, prompt, picture)["input_ids"]
    assert int((tokens == token).sum()) == 4  # 56 / 28, squared
