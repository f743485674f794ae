"""From conversations and pictures to tensors: one way for training, evaluation and `try`.

The chat template and the processor are the model's own, so a new model family needs no code
here: the picture's place and its tokens are whatever the processor makes of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from qwen_vl_utils import extract_vision_info
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BatchFeature, ProcessorMixin

IGNORED = -100  # label of tokens that are no target


def encode_prompts(
    processor: "ProcessorMixin",
    prompts: list[list[dict[str, str]]],
    images: list[list["Image"]],
) -> "BatchFeature":
    """Tokens and pixels of prompts for generation, padded on the left.

    Args:
        prompts: conversations that end with the user's turn.
        images: of each conversation its decoded RGB pictures.

    Returns:
        `input_ids` and `attention_mask` of shape [rows, tokens], and the processor's pictures.
    """
    written = [
        write_prompt(processor, prompt, pictures)
        for prompt, pictures in zip(prompts, images, strict=True)
    ]
    pictures = [row_pictures for _, row_pictures in written]
    return processor(
        text=[text for text, _ in written],
        images=pictures if any(pictures) else None,
        padding=True,
        padding_side="left",
        add_special_tokens=False,  # the template has written them
        return_tensors="pt",
    )


def write_prompt(
    processor: "ProcessorMixin", prompt: list[dict[str, str]], images: list["Image"]
) -> tuple[str, list["Image"]]:
    """A prompt as the model's own chat template writes it, and its pictures in their order."""
    messages = prepare_multimodal_messages(prompt, images=images)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text, [part["image"] for part in extract_vision_info(messages)]


class CatalogCollator(DataCollatorForVisionLanguageModeling):
    """TRL's collator, but picture tokens are never a target.

    It matters for `completion_only_loss: false`, the published recipe's loss on every token
    but padding and pictures: TRL's own would ask the model to predict picture placeholders.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Encode rows with `prompt`, `completion` and `images` into one padded batch."""
        batch = super().torch_call(examples)
        picture_tokens = torch.tensor(picture_token_ids(self.processor))
        batch["labels"][torch.isin(batch["input_ids"], picture_tokens)] = IGNORED
        return batch


def picture_token_ids(processor: "ProcessorMixin") -> list[int]:
    """Ids of the tokens that stand for pieces of a picture in this model's prompt."""
    names = [
        getattr(processor, attribute)
        for attribute in ("image_token", "image_break_token", "image_end_token")
        if isinstance(getattr(processor, attribute, None), str)
    ]
    return [processor.tokenizer.convert_tokens_to_ids(name) for name in names]


# What the processor makes of the text; all else that it returns belongs to the pictures.
TOKEN_INPUTS = ("input_ids", "attention_mask", "labels", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class EncodedRow:
    """One row as the model takes it, without padding.

    Attributes:
        input_ids, labels: [tokens]; the first token is never a target.
        token_types: [tokens], what each token stands for (text 0, picture 1); None if the
            processor does not say.
        pictures: the processor's picture inputs, such as `pixel_values`; empty without pictures.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    token_types: torch.Tensor | None
    pictures: dict[str, torch.Tensor]


def encode_row(collator: CatalogCollator, row: dict[str, Any]) -> EncodedRow:
    """Encode a row with `prompt`, `completion` and `images` just as a padded batch would be."""
    example = {name: row[name] for name in ("prompt", "completion", "images")}
    batch = collator([example])
    labels = batch["labels"][0]
    labels[0] = IGNORED  # packed, it would be a target of the sample before it
    types = batch.get("mm_token_type_ids")
    return EncodedRow(
        input_ids=batch["input_ids"][0],
        labels=labels,
        token_types=None if types is None else types[0],
        pictures={
            name: value
            for name, value in batch.items()
            if name not in TOKEN_INPUTS and isinstance(value, torch.Tensor)
        },
    )


def join_pictures(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Picture inputs of several rows as one batch: concatenated, and padded with zeros on the
    right and below where pictures keep their own height and width."""
    with_pictures = [row for row in rows if row]
    names = with_pictures[0] if with_pictures else {}
    return {name: _concatenate([row[name] for row in with_pictures]) for name in names}


def _concatenate(parts: list[torch.Tensor]) -> torch.Tensor:
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        missing = [most - size for most, size in zip(shape, part.shape[1:], strict=True)]
        pads = [pad for most in reversed(missing) for pad in (0, most)]
        padded.append(torch.nn.functional.pad(part, pads) if any(missing) else part)
    return torch.cat(padded)
