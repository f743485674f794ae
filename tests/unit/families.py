"""Tiny models of each family of vision-language models, with random weights in fp32."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from vlmtune.encoding import IGNORED, EncodedRow, join_pictures

VOCABULARY, PICTURE = 100, 99  # tokens, and the one that stands for a piece of a picture
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
QWEN_IDS = {"image_token_id": PICTURE, "video_token_id": 98, "vision_start_token_id": 97}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}

Size = tuple[int, int]


def qwen_picture(size: Size, patch: int) -> tuple[int, dict[str, torch.Tensor]]:
    """Tokens and inputs of a picture of so many merged patches."""
    height, width = size
    values = torch.randn(4 * height * width, 3 * 2 * patch * patch)
    grid = torch.tensor([[1, 2 * height, 2 * width]])
    return height * width, {"pixel_values": values, "image_grid_thw": grid}


def qwen2_vl() -> Any:
    """Qwen2-VL: multimodal rope."""
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    text = {**TEXT, "rope_parameters": ROPE}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **QWEN_IDS)
    return Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl() -> Any:
    """Qwen2.5-VL: windows in the vision tower."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "num_heads": 2,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    text = {**TEXT, "rope_parameters": ROPE}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **QWEN_IDS)
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> Any:
    """Qwen3-VL: features of an earlier vision layer go into the decoder's first layers."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "num_heads": 2,
        "patch_size": 14,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
    }
    text = {**TEXT, "head_dim": 16, "rope_parameters": ROPE}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_IDS)
    return Qwen3VLForConditionalGeneration(config)


def pixtral() -> Any:
    """Pixtral: plain rope, pictures of any size padded to the largest."""
    vision = PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=112,
        patch_size=14,
        head_dim=16,
    )
    text = MistralConfig(**TEXT, head_dim=16, sliding_window=None)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=PICTURE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return LlavaForConditionalGeneration(config)


def pixtral_picture(size: Size, patch: int) -> tuple[int, dict[str, torch.Tensor]]:
    """Tokens and inputs of a picture of so many patches."""
    height, width = (patch * side for side in size)
    inputs = {
        "pixel_values": torch.randn(1, 3, height, width),
        "image_sizes": torch.tensor([[height, width]]),
    }
    return size[0] * size[1], inputs


def llava() -> Any:
    """LLaVA: CLIP's tower with pictures of one size, and Llama."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=42,
        patch_size=14,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=PICTURE
    )
    return LlavaForConditionalGeneration(config)


def clip_picture(size: Size, patch: int) -> tuple[int, dict[str, torch.Tensor]]:
    """Tokens and inputs of a picture: all are of one size."""
    return 9, {"pixel_values": torch.randn(1, 3, 42, 42)}


@dataclass
class Family:
    """A kind of model and its pictures."""

    build: Callable[[], Any]
    picture: Callable[[Size, int], tuple[int, dict[str, torch.Tensor]]]
    token_types: bool

    def model(self) -> Any:
        """A fp32 model with random weights, the same each time."""
        torch.manual_seed(0)
        return self.build().eval()

    def row(self, words: int, size: Size | None, seed: int) -> EncodedRow:
        """A row with or without a picture; the last words are targets."""
        torch.manual_seed(seed)
        tokens, pictures = self.picture(size, 14) if size else (0, {})
        before, after = torch.randint(0, 90, (5,)), torch.randint(0, 90, (words,))
        ids = torch.cat([before, torch.full((tokens,), PICTURE), after])
        labels = ids.clone()
        labels[: 5 + tokens + words // 2] = IGNORED
        types = (ids == PICTURE).int() if self.token_types else None
        return EncodedRow(ids, labels, types, pictures)


FAMILIES = {
    "qwen2_vl": Family(qwen2_vl, qwen_picture, True),
    "qwen2_5_vl": Family(qwen2_5_vl, qwen_picture, True),
    "qwen3_vl": Family(qwen3_vl, qwen_picture, True),
    "pixtral": Family(pixtral, pixtral_picture, False),
    "llava": Family(llava, clip_picture, False),
}


def prompts(family: Family, sizes: list[Size | None]) -> dict[str, torch.Tensor]:
    """Prompts of different lengths, padded on the left, with pictures of these sizes."""
    rows = [family.row(4 + 3 * number, size, seed=number) for number, size in enumerate(sizes)]
    longest = max(len(row.input_ids) for row in rows)

    def joined(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([pad(part, (longest - len(part), 0)) for part in parts])

    inputs = {
        "input_ids": joined([row.input_ids for row in rows]),
        "attention_mask": joined([torch.ones_like(row.input_ids) for row in rows]),
        **join_pictures([row.pictures for row in rows]),
    }
    if family.token_types:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == PICTURE).int()
    return inputs
