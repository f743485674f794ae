"""Packed and padded are the same training: tiny fp32 models of each family, random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
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
from vlmtune.models import attention
from vlmtune.models.attention import use_packed_attention
from vlmtune.models.vision import PictureEncoder, trainable_outside_language_model
from vlmtune.training.packable import why_not_packable
from vlmtune.training.packing import pack, position_counter

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


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    """Each family in turn."""
    return FAMILIES[request.param]


def rows_of(family: Family) -> list[EncodedRow]:
    """Rows of different lengths and pictures, one of them without any."""
    return [
        family.row(12, (2, 3), seed=1),
        family.row(5, None, seed=2),
        family.row(20, (3, 2), seed=3),
        family.row(9, (4, 4), seed=4),
    ]


def with_adapter(model: Any, modules: str = r".*language_model.*_proj") -> Any:
    """A LoRA adapter whose second matrix is not zero, so that all gradients count."""
    torch.manual_seed(7)
    return get_peft_model(model, LoraConfig(r=4, target_modules=modules, init_lora_weights=False))


def batch_of(rows: list[EncodedRow], positions: Any) -> dict[str, Any]:
    """The rows as a pack."""
    return pack(
        [
            {"input_ids": row.input_ids, "labels": row.labels, "positions": positions(row)}
            for row in rows
        ]
    )


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Loss of each token as the target of the one before it; 0 where there is no target."""
    return cross_entropy(logits[0, :-1].float(), labels[0, 1:], reduction="none")


def packed_losses(model: Any, rows: list[EncodedRow], given: Any = None) -> list[torch.Tensor]:
    """Summed loss of each row of a pack."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    use_packed_attention(base)
    pictures = PictureEncoder(base)
    batch = batch_of(rows, position_counter(pictures.inner))
    labels = batch.pop("labels")
    inputs = join_pictures([row.pictures for row in rows])
    if inputs:
        batch["pixel_values"] = pictures.placeholder()
        if given is not None:
            pictures.encode(inputs, sum(bool(row.pictures) for row in rows))
    with pictures.given((inputs or None) if given is None else given):
        logits = model(**batch, use_cache=False).logits
    pictures.remove()
    lengths = [len(row.input_ids) for row in rows]
    losses = torch.cat([torch.zeros(1), token_losses(logits, labels)])
    return [each.sum() for each in losses.split(lengths)]


def padded_losses(model: Any, rows: list[EncodedRow]) -> list[torch.Tensor]:
    """The same by a padded batch, as transformers runs it."""
    width = max(len(row.input_ids) for row in rows)
    fill = [width - len(row.input_ids) for row in rows]
    pad = torch.nn.functional.pad
    batch: dict[str, Any] = {
        "input_ids": torch.stack(
            [pad(row.input_ids, (0, more)) for row, more in zip(rows, fill, strict=True)]
        ),
        "attention_mask": torch.stack(
            [
                pad(torch.ones_like(row.input_ids), (0, more))
                for row, more in zip(rows, fill, strict=True)
            ]
        ),
        **join_pictures([row.pictures for row in rows]),
    }
    if rows[0].token_types is not None:
        batch["mm_token_type_ids"] = torch.stack(
            [pad(row.token_types, (0, more)) for row, more in zip(rows, fill, strict=True)]
        )
    logits = model(**batch, use_cache=False).logits
    return [
        token_losses(logits[at : at + 1, : len(row.input_ids)], row.labels[None]).sum()
        for at, row in enumerate(rows)
    ]


def loss_and_gradients(losses: list[torch.Tensor], rows: list[EncodedRow], model: Any) -> Any:
    """The step's loss, divided by its targets, and what it does to the adapter."""
    targets = sum(int((row.labels != IGNORED).sum()) for row in rows)
    loss = torch.stack(losses).sum() / targets
    loss.backward()
    gradients = {
        name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad
    }
    return float(loss), gradients


def test_packed_and_padded_agree(family: Family) -> None:
    """Loss and every gradient of the adapter, to 1e-5."""
    rows = rows_of(family)
    padded_model, packed_model = (with_adapter(family.model()) for _ in range(2))
    padded, expected = loss_and_gradients(padded_losses(padded_model, rows), rows, padded_model)
    packed, found = loss_and_gradients(packed_losses(packed_model, rows), rows, packed_model)
    assert packed == pytest.approx(padded, rel=1e-5)
    assert len(found) >= 28 and set(found) == set(expected)
    for name, gradient in found.items():
        distance = (gradient - expected[name]).norm() / expected[name].norm()
        assert float(distance) < 1e-5, name


def test_another_picture_moves_no_other_row(family: Family) -> None:
    """Nor do other words; the row itself moves."""
    rows = rows_of(family)
    model = family.model()
    with torch.no_grad():
        before = packed_losses(model, rows)
        torch.manual_seed(11)
        rows[2].pictures["pixel_values"].copy_(torch.randn_like(rows[2].pictures["pixel_values"]))
        after = packed_losses(model, rows)
    assert abs(float(before[2] - after[2])) > 1e-4
    for at in (0, 1, 3):
        assert float(after[at]) == pytest.approx(float(before[at]), rel=1e-6)


def test_features_handed_in(family: Family) -> None:
    """Bit-equal when encoded alike; within 1e-5 when encoded together with others."""
    rows = [row for row in rows_of(family) if row.pictures]
    model = family.model()
    use_packed_attention(model)
    pictures = PictureEncoder(model)
    alone = [pictures.encode(row.pictures, 1)[0] for row in rows]
    again = [pictures.encode(row.pictures, 1)[0] for row in rows]
    together = pictures.encode(join_pictures([row.pictures for row in rows]), len(rows))
    pictures.remove()
    for one, same, batched in zip(alone, again, together, strict=True):
        for name, values in one.items():
            assert torch.equal(values, same[name])
            torch.testing.assert_close(values, batched[name], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        fresh, handed = packed_losses(model, rows), packed_losses(model, rows, alone)
    assert torch.stack(handed).tolist() == pytest.approx(torch.stack(fresh).tolist(), rel=1e-5)


def test_no_target_across_a_boundary(family: Family) -> None:
    """The first token of a sample is no target of the one before it, whatever its label says."""
    from vlmtune.encoding import CatalogCollator, encode_row

    assert CatalogCollator and encode_row  # the mask is set there; see test_encoding.py
    rows = rows_of(family)
    labels = batch_of(rows, position_counter(family.model().base_model))["labels"][0]
    starts = torch.tensor([0, *(len(row.input_ids) for row in rows[:-1])]).cumsum(0)
    assert (labels[starts] == IGNORED).all() and (labels != IGNORED).any()


def test_rows_without_pictures_alone(family: Family) -> None:
    """A pack of texts is the same as each text by itself."""
    rows = [family.row(8, None, seed) for seed in (1, 2)]
    model = family.model()
    with torch.no_grad():
        expected = [float(padded_losses(model, [row])[0]) for row in rows]
        found = [float(loss) for loss in packed_losses(model, rows)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_each_family_can_be_packed(family: Family) -> None:
    """And is found out if its attention looks beyond a sample."""
    model = family.model()
    use_packed_attention(model)
    pictures = PictureEncoder(model)
    positions = position_counter(pictures.inner)
    rows = [family.row(12, (2, 3), 1), family.row(9, (3, 2), 2)]
    assert why_not_packable(model, pictures, positions, rows) is None


def test_a_leak_is_found(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that ignores the bounds of samples."""
    own = attention._sample_by_sample

    def ignore_bounds(query: Any, key: Any, value: Any, bounds: Any, *rest: Any) -> Any:
        return own(query, key, value, bounds[[0, -1]], *rest)

    model = family.model()
    use_packed_attention(model)
    pictures = PictureEncoder(model)
    rows = [family.row(12, None, 1), family.row(9, None, 2)]
    monkeypatch.setattr(attention, "_sample_by_sample", ignore_bounds)
    reason = why_not_packable(model, pictures, position_counter(pictures.inner), rows)
    assert reason and "sample" in reason


def test_a_model_without_picture_features() -> None:
    """A text model, say."""
    from transformers import LlamaForCausalLM

    with pytest.raises(TypeError, match="get_image_features"):
        PictureEncoder(LlamaForCausalLM(LlamaConfig(**TEXT)))


def test_what_training_changes_is_read_from_the_parameters(family: Family) -> None:
    """An adapter on the decoder leaves pictures alone, one on the vision tower does not."""
    decoder = with_adapter(family.model()).get_base_model()
    assert not trainable_outside_language_model(decoder) and PictureEncoder(decoder).frozen
    tower = with_adapter(family.model(), r".*(visual|vision_tower).*(qkv|q_proj)").get_base_model()
    assert trainable_outside_language_model(tower) and not PictureEncoder(tower).frozen


def test_a_trained_tower_gets_gradients() -> None:
    """Through a pack."""
    family = FAMILIES["qwen2_vl"]
    model = with_adapter(family.model(), r".*(visual.*qkv|q_proj)")
    rows = rows_of(family)
    _, gradients = loss_and_gradients(packed_losses(model, rows), rows, model)
    tower = [gradient for name, gradient in gradients.items() if "visual" in name]
    assert tower and all(float(gradient.abs().sum()) > 0 for gradient in tower)
