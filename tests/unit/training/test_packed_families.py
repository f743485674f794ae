"""Packed and padded are the same training: tiny fp32 models of each family, random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlavaProcessor,
    MllamaForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
)

from tests.tolerance import distance, rounding_bound, roundings_in
from tests.unit.families import FAMILIES, PICTURE, TEXT, Family, Size, clip_picture
from vlmtune.config.model import ModelConfig
from vlmtune.encoding import (
    IGNORED,
    CatalogCollator,
    EncodedRow,
    encode_row,
    join_pictures,
    picture_token_ids,
)
from vlmtune.models import attention
from vlmtune.models.attention import use_packed_attention
from vlmtune.models.processor import load_processor
from vlmtune.models.quantized import load_model
from vlmtune.models.vision import PictureEncoder, trainable_outside_language_model
from vlmtune.training import packable
from vlmtune.training.packable import why_not_packable
from vlmtune.training.packing import pack, position_counter

DEMO = Path(__file__).resolve().parents[3] / "demo" / "model"


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
    return float(loss.detach()), gradients


def test_packed_and_padded_agree(family: Family) -> None:
    """Loss and every gradient of the adapter, but for rounding."""
    rows = rows_of(family)
    padded_model, packed_model = (with_adapter(family.model()) for _ in range(2))
    padded, expected = loss_and_gradients(padded_losses(padded_model, rows), rows, padded_model)
    packed, found = loss_and_gradients(packed_losses(packed_model, rows), rows, packed_model)
    forward = rounding_bound(torch.float32, 2 * roundings_in(packed_model))
    both = rounding_bound(torch.float32, 2 * roundings_in(packed_model, training=True))
    assert packed == pytest.approx(padded, rel=forward)
    assert len(found) >= 28 and set(found) == set(expected)
    for name, gradient in found.items():
        assert distance(gradient, expected[name]) <= both, name


def test_another_picture_moves_no_other_row(family: Family) -> None:
    """Not by one bit, nor do other words; the row itself moves."""
    rows = rows_of(family)
    model = family.model()
    with torch.no_grad():
        before = packed_losses(model, rows)
        torch.manual_seed(11)
        rows[2].pictures["pixel_values"].copy_(torch.randn_like(rows[2].pictures["pixel_values"]))
        after = packed_losses(model, rows)
    assert [bool(one == other) for one, other in zip(before, after, strict=True)] == [
        True,
        True,
        False,
        True,
    ]


def test_features_handed_in(family: Family) -> None:
    """Bit-equal when encoded alike; but for rounding when encoded together with others."""
    rows = [row for row in rows_of(family) if row.pictures]
    model = family.model()
    use_packed_attention(model)
    pictures = PictureEncoder(model)
    alone = [pictures.encode(row.pictures, 1)[0] for row in rows]
    again = [pictures.encode(row.pictures, 1)[0] for row in rows]
    together = pictures.encode(join_pictures([row.pictures for row in rows]), len(rows))
    pictures.remove()
    bound = rounding_bound(torch.float32, 2 * roundings_in(model))
    for one, same, batched in zip(alone, again, together, strict=True):
        for name, values in one.items():
            assert torch.equal(values, same[name])
            assert distance(values, batched[name]) <= bound
    with torch.no_grad():
        fresh, handed = packed_losses(model, rows), packed_losses(model, rows, alone)
    assert torch.stack(handed).tolist() == pytest.approx(torch.stack(fresh).tolist(), rel=bound)


def test_rows_without_pictures_alone(family: Family) -> None:
    """A pack of texts is the same as each text by itself."""
    rows = [family.row(8, None, seed) for seed in (1, 2)]
    model = family.model()
    with torch.no_grad():
        expected = [float(padded_losses(model, [row])[0]) for row in rows]
        found = [float(loss) for loss in packed_losses(model, rows)]
    assert found == pytest.approx(
        expected, rel=rounding_bound(torch.float32, 2 * roundings_in(model))
    )


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


def test_a_picture_that_feels_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vision tower whose pictures are not kept apart."""
    family = FAMILIES["qwen2_vl"]
    model = family.model()
    use_packed_attention(model)
    own = type(model.model).get_image_features

    def mix(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = own(self, *args, **kwargs)
        first, *others = output.pooler_output
        output.pooler_output = (first, *(other + 0.1 * first.mean(0) for other in others))
        return output

    monkeypatch.setattr(type(model.model), "get_image_features", mix)
    pictures = PictureEncoder(model)
    # As in half precision, where the hidden states may differ by some percent.
    monkeypatch.setitem(packable.TOLERANCE, torch.float32, 1.0)
    rows = [family.row(12, (2, 3), 1), family.row(9, (3, 2), 2)]
    reason = why_not_packable(model, pictures, position_counter(pictures.inner), rows)
    assert reason and "a picture feels the one before it" in reason


def gemma3() -> Any:
    """Gemma 3: the tokens of a picture look ahead, by `token_type_ids`."""
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 42,
        "patch_size": 14,
    }
    text = {**TEXT, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 512}
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=9, image_token_index=PICTURE
    )
    return Gemma3ForConditionalGeneration(config)


def test_pictures_that_look_ahead_are_not_packed() -> None:
    """A pack would be causal everywhere, without any error."""
    family = Family(gemma3, clip_picture, False)
    model = family.model()
    use_packed_attention(model)
    pictures = PictureEncoder(model)
    rows = [family.row(12, (3, 3), 1), family.row(9, (3, 3), 2)]
    reason = why_not_packable(model, pictures, position_counter(pictures.inner), rows)
    assert reason and "token_type_ids" in reason


def test_cross_attention_is_not_packed() -> None:
    """Llama 3.2 Vision has no features among its tokens."""
    with torch.device("meta"):
        model = MllamaForConditionalGeneration(MllamaForConditionalGeneration.config_class())
    with pytest.raises(TypeError, match="get_image_features"):
        PictureEncoder(model)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "pixtral"])
def test_trained_tower_packed_and_padded_agree(name: str) -> None:
    """Every gradient of an adapter on vision tower and decoder, but for rounding."""
    family, modules = FAMILIES[name], r".*((visual|vision_tower).*(qkv|q_proj)|language.*v_proj)"
    rows = rows_of(family)
    one, other = (with_adapter(family.model(), modules) for _ in range(2))
    _, expected = loss_and_gradients(padded_losses(one, rows), rows, one)
    _, found = loss_and_gradients(packed_losses(other, rows), rows, other)
    assert any("visual" in each or "vision_tower" in each for each in found)
    bound = rounding_bound(torch.float32, 2 * roundings_in(one, training=True))
    for each, gradient in found.items():
        assert distance(gradient, expected[each]) <= bound, each


def test_trained_embeddings_leave_pictures_alone(family: Family) -> None:
    """They belong to the decoder: no picture's features pass through them."""
    options = LoraConfig(target_modules=["q_proj"], exclude_modules=r".*(visual|vision).*")
    options.modules_to_save = ["embed_tokens", "lm_head"]
    model = get_peft_model(family.model(), options).get_base_model()
    assert any("embed_tokens" in n for n, w in model.named_parameters() if w.requires_grad)
    assert trainable_outside_language_model(model) == []
    pictures = PictureEncoder(model)
    assert pictures.frozen
    stays = {id(module) for module in model.get_decoder().modules()}
    assert pictures._tower
    assert not any(id(part) in stays for tower in pictures._tower for part in tower.modules())


def demo_processor() -> Any:
    """The demo's own, of Qwen's kind."""
    return load_processor(str(DEMO), None, ModelConfig(id=str(DEMO)))


def other_processor(kind: str) -> Any:
    """The demo's tokenizer with the pictures of another family."""
    demo = demo_processor()
    tokens = {"pixtral": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"], "llava": ["<image>"]}[kind]
    demo.tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    template = demo.chat_template.replace("<|vision_start|><|image_pad|><|vision_end|>", tokens[0])
    options = {"tokenizer": demo.tokenizer, "chat_template": template, "patch_size": 14}
    if kind == "pixtral":
        return PixtralProcessor(PixtralImageProcessor(size={"longest_edge": 56}), **options)
    side = {"height": 42, "width": 42}
    images = CLIPImageProcessor(size={"shortest_edge": 42}, crop_size=side)
    return LlavaProcessor(
        images,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **options,
    )


PROCESSORS: dict[str, Callable[[], Any]] = {
    "qwen": demo_processor,
    "pixtral": lambda: other_processor("pixtral"),
    "llava": lambda: other_processor("llava"),
}


def catalog_row(size: Size | None, answer: str) -> dict[str, Any]:
    """A row as the trainer has it."""
    return {
        "prompt": [{"role": "user", "content": "Describe this mug."}],
        "completion": [{"role": "assistant", "content": answer}],
        "images": [Image.effect_noise(size, 80).convert("RGB")] if size else [],
    }


CATALOG_ROWS = [
    catalog_row((40, 40), "A mug."),
    catalog_row((56, 28), "A rather longer mug, with a handle."),
    catalog_row(None, "No picture of it."),
]


@pytest.mark.parametrize("completion_only", [True, False])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_targets_in_a_pack(kind: str, completion_only: bool) -> None:
    """Never a sample's first token, never a picture; the prompt only if it is wanted."""
    processor = PROCESSORS[kind]()
    collator = CatalogCollator(processor=processor, completion_only_loss=completion_only)
    rows = [encode_row(collator, row) for row in CATALOG_ROWS]
    batch = batch_of(rows, lambda row: torch.arange(len(row.input_ids))[None])
    ids, labels, bounds = batch["input_ids"][0], batch["labels"][0], batch["cu_seq_lens_q"]
    assert (labels[bounds[:-1].long()] == IGNORED).all()
    picture = torch.isin(ids, torch.tensor(picture_token_ids(processor)))
    assert picture.any() and (labels[picture] == IGNORED).all()
    target = labels != IGNORED
    assert torch.equal(labels[target], ids[target])
    for at, row in enumerate(CATALOG_ROWS):
        part = slice(int(bounds[at]), int(bounds[at + 1]))
        words = processor.tokenizer.decode(ids[part][target[part]])
        assert row["completion"][0]["content"] in words
        assert ("Describe this mug." in words) is not completion_only
        if not completion_only:
            assert int((~target[part]).sum()) == 1 + int(picture[part].sum())


def test_evaluation_leaves_4bit_weights_as_they_are() -> None:
    """A forward without gradients in mid-training changes no gradient of the steps after it."""
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    base = load_model(str(DEMO), None, ModelConfig(id=str(DEMO), device="cpu"), options)
    layers = [each for each in base.modules() if hasattr(each, "support_avx512bf16_for_cpu")]
    assert len(layers) >= 28 and not any(each.support_avx512bf16_for_cpu for each in layers)
    model = with_adapter(base)
    collator = CatalogCollator(processor=demo_processor(), completion_only_loss=True)
    rows = [encode_row(collator, row) for row in CATALOG_ROWS]

    def gradients() -> dict[str, torch.Tensor]:
        model.train().zero_grad()
        return loss_and_gradients(packed_losses(model, rows), rows, model)[1]

    before = {name: gradient.clone() for name, gradient in gradients().items()}
    with torch.no_grad():
        packed_losses(model.eval(), rows)
    after = gradients()
    assert before and any(gradient.any() for gradient in before.values())
    assert all(torch.equal(gradient, after[name]) for name, gradient in before.items())
