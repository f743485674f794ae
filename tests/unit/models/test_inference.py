"""What makes a model write faster changes nothing of what it computes, and can be taken out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import (
    AutoModelForImageTextToText,
    BatchFeature,
    BitsAndBytesConfig,
    DynamicCache,
    Gemma3ForConditionalGeneration,
    MllamaForConditionalGeneration,
    StaticCache,
)

from tests.tolerance import distance, rounding_bound, roundings_in
from tests.unit.families import FAMILIES, Family, Size, prompts
from vlmtune.evaluation.decoding import Decoder, LongerPrompt, takes_packs
from vlmtune.evaluation.prompt_packs import pack_prompts
from vlmtune.models import inference
from vlmtune.models.attention import VARLEN
from vlmtune.models.inference import (
    Unpacked,
    joint_pictures,
    made_ready,
    unpacked_weights,
)
from vlmtune.models.positions import numbering, prompt_positions
from vlmtune.models.quantized import _keep_4bit_weights_as_they_are
from vlmtune.models.step_graph import (
    MOST_CAPTURES,
    StepGraph,
    is_step,
    kind_of,
    of_this_step,
    takes_static_cache,
    tensors_in,
)

MULTIMODAL_ROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(params=MULTIMODAL_ROPE)
def model(request: pytest.FixtureRequest) -> Any:
    """A tiny model of each family with multimodal rope."""
    return FAMILIES[request.param].model()


QWEN = FAMILIES["qwen2_vl"]


@pytest.mark.parametrize("pictures", [True, False])
def test_positions_are_those_that_generate_would_count(
    model: Any, monkeypatch: pytest.MonkeyPatch, pictures: bool
) -> None:
    """With and without pictures, padding left out."""
    inputs = prompts(QWEN, [(2, 3), (4, 4)] if pictures else [None, None])
    seen = []
    own = model.base_model.forward

    def watched(*args: Any, **given: Any) -> Any:
        seen.append(given["position_ids"])
        return own(*args, **given)

    expected = prompt_positions(numbering(model.base_model), inputs)
    monkeypatch.setattr(model.base_model, "forward", watched)
    model.generate(**inputs, max_new_tokens=1, do_sample=False)
    real = inputs["attention_mask"].bool()
    assert seen[0].shape == expected.shape
    assert torch.equal(seen[0][:, real], expected[:, real])


def test_plain_models_count_their_own_tokens() -> None:
    """Only those with multimodal rope have a way of numbering to borrow."""
    assert numbering(SimpleNamespace()) is None


def test_pictures_go_through_the_tower_together(model: Any) -> None:
    """Features are those of transformers' own loop over pictures; the attention is put back."""
    inputs = prompts(QWEN, [(2, 3), (4, 4)])
    pictures = inputs["pixel_values"], inputs["image_grid_thw"]
    with torch.no_grad():
        own = model.get_image_features(*pictures).pooler_output
        with joint_pictures(model):
            assert model.model.visual.config._attn_implementation == VARLEN
            joint = model.get_image_features(*pictures).pooler_output
    assert model.model.visual.config._attn_implementation == "sdpa"
    for one, other in zip(own, joint, strict=True):
        bound = rounding_bound(one.dtype, 2 * roundings_in(model.model.visual))
        assert distance(other, one) <= bound


@pytest.fixture
def four_bit(root: Any) -> Any:
    """The demo's model in 4 bits."""
    options = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForImageTextToText.from_pretrained(
        root / "demo" / "model", dtype=torch.bfloat16, quantization_config=options
    )
    _keep_4bit_weights_as_they_are(model)
    return model.eval()


def test_unpacked_weights_compute_the_same_bits(four_bit: Any) -> None:
    """Those of the layers below an adapter too; afterwards the 4-bit layers are back."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    options = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(four_bit, options).eval()
    ids = torch.randint(0, 500, (3, 20))
    packed = [name for name, each in four_bit.named_modules() if type(each) is Linear4bit]
    with torch.no_grad():
        own = adapted(input_ids=ids).logits
        with made_ready(adapted):
            unpacked = [name for name, each in four_bit.named_modules() if type(each) is Unpacked]
            ready = adapted(input_ids=ids).logits
    assert torch.equal(own, ready)
    assert unpacked == packed and len(packed) > 20
    assert [n for n, each in four_bit.named_modules() if type(each) is Linear4bit] == packed


def test_weights_stay_packed_where_there_is_no_room(
    four_bit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slower is better than out of memory."""
    monkeypatch.setattr(inference, "free_memory", lambda device: 1_000)
    with unpacked_weights(four_bit):
        assert not any(type(each) is Unpacked for each in four_bit.modules())


def test_what_a_graph_can_replay(model: Any) -> None:
    """One token a row, a static cache, and no input that hides tensors from it."""
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=8)
    step = {
        "input_ids": torch.zeros(2, 1),
        "past_key_values": cache,
        "attention_mask": {"full_attention": torch.ones(2, 1, 1, 8)},
        "mm_token_type_ids": torch.arange(6).reshape(2, 3),
        "use_cache": True,
    }
    assert is_step(step) and takes_static_cache(model)
    assert not is_step({**step, "input_ids": torch.zeros(2, 3)})
    assert not is_step({**step, "past_key_values": DynamicCache()})
    assert not is_step({**step, "features": [torch.zeros(2)]})
    assert not is_step({**step, "features": {"image": SimpleNamespace()}})
    assert of_this_step(step)["mm_token_type_ids"].tolist() == [[2], [5]]
    assert list(tensors_in(step)) == [
        "input_ids.",
        "attention_mask.full_attention",
        "mm_token_type_ids.",
    ]


def test_a_graph_serves_only_its_own_kind_of_step() -> None:
    """Another shape, another plain value or another cache is another kind."""
    cache = SimpleNamespace()
    step = {"input_ids": torch.zeros(2, 1), "past_key_values": cache, "logits_to_keep": 1}
    assert kind_of(step) == kind_of({**step, "input_ids": torch.ones(2, 1)})
    assert kind_of(step) != kind_of({**step, "input_ids": torch.zeros(3, 1)})
    assert kind_of(step) != kind_of({**step, "logits_to_keep": 2})
    assert kind_of(step) != kind_of({**step, "past_key_values": SimpleNamespace()})


def test_steps_that_differ_each_time_are_run_as_they_come(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Capturing each of them would take far longer than running it."""
    model, captured = FAMILIES["qwen2_vl"].model(), []
    caplog.set_level("INFO", "vlmtune.models.step_graph")
    inputs = prompts(QWEN, [(2, 3)])
    monkeypatch.setattr(StepGraph, "_capture", lambda self, *_: captured.append(self))
    graph = StepGraph(model)
    graph._graph = SimpleNamespace(replay=lambda: None)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=8)
    step = {"input_ids": inputs["input_ids"][:, -1:], "past_key_values": cache}
    with torch.no_grad():
        for keep in range(1, MOST_CAPTURES + 3):
            graph._held = tensors_in(step)
            model(**step, logits_to_keep=keep)
    assert len(captured) == MOST_CAPTURES
    assert "no step is like the one before" in caplog.text


class Numbers:
    """A tokenizer's place: texts are the numbers of the tokens, without padding."""

    def batch_decode(self, answers: torch.Tensor, **_: Any) -> list[str]:
        """One text a row."""
        return [" ".join(str(token) for token in answer if token) for answer in answers.tolist()]


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_read_in_pieces_are_answered_alike(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each family: read one by one or in one pack into one cache, then written together, as on
    a GPU but for the graph; with a row without a picture between the others. Some answers end
    earlier than others: all before the longest may, and before the loop looks for the first
    time. The longest prompt is over-estimated, known or under-estimated."""
    monkeypatch.setattr(StepGraph, "_step", lambda self, inputs: self._own(**inputs))
    monkeypatch.setattr("vlmtune.evaluation.decoding.fixed_length", lambda tokens: tokens)
    family = FAMILIES[name]
    model, sizes = family.model(), [(2, 3), None, (4, 4)]
    assert takes_static_cache(model) and takes_packs(model)
    together = prompts(family, sizes)
    packs = [pack_prompts(piece) for piece in one_by_one(family, together, sizes)]
    in_one, exact = with_positions(model, family, together), together["input_ids"].shape[1]
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    plain = Decoder(model, Numbers(), options)
    first, second, _ = (each.text for each in plain.answer([BatchFeature(together)], 3, 0))
    ends = [int(first.split()[2]), int(second.split()[5])]
    sampled = {"do_sample": True, "temperature": 3.0}
    for more in ({}, {"eos_token_id": ends}, {"eos_token_id": ends, "min_new_tokens": 9}, sampled):
        torch.manual_seed(0)
        whole = Decoder(model, Numbers(), options | more).answer([BatchFeature(together)], 3, 0)
        decoder = Decoder(model, Numbers(), options | more, static=True)
        for each, longest in ((packs, 100), ([pack_prompts(in_one)], 200), (packs, exact)):
            torch.manual_seed(0)
            with joint_pictures(model):
                assert decoder.answer(each, 3, longest) == whole
        assert decoder._cache_size == (3, 200 + 40)  # the largest serves the others
        with pytest.raises(LongerPrompt, match=f"a prompt of {exact} tokens"):
            decoder.answer(packs, 3, exact - 1)
        decoder.close()
    assert "forward" not in model.__dict__


def test_reading_ends_with_the_last_keys() -> None:
    """What the last layer makes of them is not computed, and they are those of a whole forward."""
    family, ran = FAMILIES["qwen2_vl"], []
    model = family.model()
    pack = pack_prompts(with_positions(model, family, prompts(family, [(2, 3)])))
    for layer in model.get_decoder().layers:
        layer.mlp.register_forward_hook(lambda mlp, *_: ran.append(mlp))
    decoder = Decoder(model, Numbers(), {}, static=True)
    with torch.no_grad():
        read = decoder._keys_and_values(pack)
        layers = len(ran)
        whole = model.base_model(**pack.packed, use_cache=True).past_key_values
    decoder.close()
    assert layers == len(read.layers) - 1
    assert len(ran) == layers + len(whole.layers)
    bound = rounding_bound(torch.float32, 2 * roundings_in(model))
    for found, expected in zip(read.layers, whole.layers, strict=True):
        assert distance(found.keys, expected.keys) <= bound
        assert distance(found.values, expected.values) <= bound


def test_models_that_cannot_be_read_in_packs() -> None:
    """One reads pictures beside the tokens, by attention of another kind; one shows all of a
    picture to each of its tokens."""
    assert not takes_packs(MllamaForConditionalGeneration)
    assert not takes_packs(Gemma3ForConditionalGeneration)


def one_by_one(
    family: Family, together: dict[str, torch.Tensor], sizes: list[Size | None]
) -> list[BatchFeature]:
    """The same rows, each alone and without padding."""
    pieces = [BatchFeature(prompts(family, [size])) for size in sizes]
    for number, piece in enumerate(pieces):
        real = together["attention_mask"][number].bool()
        for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
            if key in together:
                piece[key] = together[key][number][real][None]
        row = family.row(4 + 3 * number, sizes[number], seed=number)
        piece.update(row.pictures)
        pieces[number] = with_positions(family.model(), family, piece)
    return pieces


def with_positions(model: Any, family: Family, inputs: Any) -> BatchFeature:
    """Prompts with the positions that models with multimodal rope count."""
    positions = {}
    if family.token_types:
        positions["position_ids"] = prompt_positions(numbering(model.base_model), inputs)
    return BatchFeature({**inputs, **positions})
