"""Merged weights are proven by arithmetic, whatever the adapter's scale; each fault is found."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear

from tests.unit.families import FAMILIES
from vlmtune.models.merge_record import MergeCheck
from vlmtune.models.merged_weights import (
    LowRankChange,
    add_rounding_noise,
    check_stored_weights,
    digest_weights,
    is_merged,
    merge_layers,
    round_stochastically,
)

TARGETS = ["q_proj", "v_proj"]
FEW = "layers.1.self_attn.q_proj"


def base() -> Any:
    """A tiny Qwen2-VL in bf16, the same each time."""
    return FAMILIES["qwen2_vl"].model().bfloat16()


def adapter(folder: Path, size: float, **options: Any) -> Path:
    """A random adapter for it, whose B has entries of this size."""
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": TARGETS, **options}
    model = get_peft_model(base(), LoraConfig(init_lora_weights=False, **settings))
    for name, weight in model.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            weight.data = torch.randn_like(weight) * size
    model.save_pretrained(folder)
    return folder


def tuned(folder: Path) -> PeftModel:
    """Base and adapter."""
    return PeftModel.from_pretrained(base(), folder)


def merged(folder: Path) -> MergeCheck:
    """What is found of a merge."""
    return merge_layers(tuned(folder), folder)[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 1},
        {"use_rslora": True},
        {"rank_pattern": {FEW: 8}, "alpha_pattern": {FEW: 2}},
        {"alpha_pattern": {"^model.language_model.layers.0.self_attn.v_proj": 64}},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
@pytest.mark.parametrize("size", [1e-4, 1e-2, 10.0])
def test_a_right_merge(tmp_path: Path, size: float, options: dict[str, Any]) -> None:
    """Changes far below a step of the weights' type, and far above the weights; any scale."""
    check = merged(adapter(tmp_path, size, **options))
    assert (check.met, check.found) == (True, "4 of 4 layers")


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0, 0.9])
@pytest.mark.parametrize("size", [1e-3, 1e-2, 10.0])
def test_a_layer_with_another_scale(
    tmp_path: Path, size: float, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out, with its sign flipped, doubled: all that can go wrong in one of PEFT's layers."""
    folder = adapter(tmp_path, size)
    model = tuned(folder)
    layer = model.get_submodule(f"base_model.model.model.language_model.{FEW}")
    layer.scaling["default"] *= factor
    check = merge_layers(model, folder)[1]
    assert not check.met
    assert check.found == f"3 of 4 layers, not in base_model.model.model.language_model.{FEW}"


def test_a_single_weight_next_to_the_right_one() -> None:
    """Two steps away is seen, in the last row of many; one may be the other order of rounding."""
    torch.manual_seed(0)
    before = torch.randn(2_000, 32).bfloat16()
    change = LowRankChange(torch.randn(4, 32), 1e-3 * torch.randn(2_000, 4), 2.0)
    after = (before.float() + 2 * change.b @ change.a).bfloat16()
    assert is_merged(before, after, change)
    after[-1, -1] *= 1 + 3 * torch.finfo(torch.bfloat16).eps
    assert not is_merged(before, after, change)
    after[-1, -1] = torch.nan
    assert not is_merged(before, after, change)


def test_a_layer_that_peft_passed_over(tmp_path: Path) -> None:
    """Its part of the adapter's file went nowhere."""
    folder = adapter(tmp_path, 1e-2)
    model = PeftModel.from_pretrained(base(), folder)
    parent = model.get_submodule("base_model.model.model.language_model.layers.0.self_attn")
    parent.v_proj = parent.v_proj.get_base_layer()
    check = merge_layers(model, folder)[1]
    assert not check.met
    assert check.found.startswith("3 of 4 layers, not in base_model")


@pytest.mark.parametrize("kind", ["use_dora", "lora_bias"])
def test_other_kinds_are_named(kind: str, tmp_path: Path) -> None:
    """DoRA also scales the base's weights, a bias is added: merged, and said not to be compared."""
    folder = adapter(tmp_path, 1e-2, **{kind: True})
    model = tuned(folder)
    result, check = merge_layers(model, folder)
    assert check.met
    assert check.found == "0 of 0 layers; 4 without plain LoRA are judged by their outputs alone"
    assert not any(isinstance(module, Linear) for module in result.modules())
    before, after = digest_weights(base()), digest_weights(result)
    changed = {name.rpartition(".")[2] for name in before if before[name] != after[name]}
    assert changed == ({"weight"} if kind == "use_dora" else {"weight", "bias"})


def test_noise_is_a_step_for_one_in_six(tmp_path: Path) -> None:
    """In adapted layers only, and nothing is left of it once it was taken back."""
    model = tuned(adapter(tmp_path, 1e-2))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    add_rounding_noise(model)
    steps, count = 0, 0
    for name, weight in model.state_dict().items():
        if "base_layer" in name:
            moved = (weight.view(torch.int16).int() - before[name].view(torch.int16).int()).abs()
            assert moved.max() == 1
            steps, count = steps + int(moved.sum()), count + moved.numel()
        else:
            assert torch.equal(weight, before[name]), name
    spread = (count * 5 / 36) ** 0.5
    assert abs(steps - count / 6) < 5 * spread
    add_rounding_noise(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_noise_is_as_large_as_that_of_rounding() -> None:
    """A variance of 1/6 of a step squared, for weights within one power of two."""
    torch.manual_seed(0)
    exact = 1 + torch.rand(512, 512)
    rounded = round_stochastically(exact, torch.bfloat16, torch.Generator().manual_seed(1))
    rounding = (rounded.float() - exact).square().mean()
    linear = torch.nn.Linear(512, 512, bias=False).bfloat16()
    linear.weight.data = exact.bfloat16()
    linear.requires_grad_(False)
    model = get_peft_model(torch.nn.Sequential(linear), LoraConfig(target_modules=["0"]))
    model.device = torch.device("cpu")
    add_rounding_noise(model)
    noise = (linear.weight.float() - exact.bfloat16().float()).square().mean()
    assert float(noise / rounding) == pytest.approx(1, abs=0.1)  # 0.5 % is one standard deviation


def test_a_change_below_half_a_step_is_kept_in_the_mean() -> None:
    """Rounding to nearest would lose all of it."""
    values = 1 + 0.9 * torch.rand(512, 512, generator=torch.Generator().manual_seed(0))
    weight = values.bfloat16()
    step = 2**-7  # of bfloat16 between 1 and 2
    share = 0.2
    wanted = weight.float() + share * step
    assert torch.equal(wanted.bfloat16(), weight)
    rounded = round_stochastically(wanted, torch.bfloat16, torch.Generator().manual_seed(1))
    moved = (rounded.float() - weight.float()) / step
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    spread = (share * (1 - share) / weight.numel()) ** 0.5
    assert abs(float(moved.mean()) - share) < 5 * spread


def test_what_lies_on_a_step_stays() -> None:
    """Of both signs, zero and the smallest numbers too."""
    values = torch.tensor([0.0, 1.0, -1.0, 3.0e-39, -1.5, 65504.0]).bfloat16()
    rounded = round_stochastically(values.float(), torch.bfloat16, torch.Generator())
    assert torch.equal(rounded, values)


def test_the_same_adapter_gives_the_same_bits(tmp_path: Path) -> None:
    """And another one other bits."""
    folder, other = adapter(tmp_path / "one", 1e-3), adapter(tmp_path / "other", 1.1e-3)
    first, again, third = (
        digest_weights(merge_layers(tuned(each), each)[0]) for each in (folder, folder, other)
    )
    assert first == again != third


def test_a_bit_is_seen() -> None:
    """One that was flipped, a tensor that is missing, and one too many."""
    model = base()
    digests = digest_weights(model)
    assert check_stored_weights(digests, digest_weights(base())).met
    weight = model.lm_head.weight.data.view(torch.int16)
    weight[-1, -1] ^= 1
    flipped = digest_weights(model)
    assert [name for name in digests if digests[name] != flipped[name]] == ["lm_head.weight"]
    for read in (flipped, {**digests, "more": ""}, dict(list(digests.items())[1:])):
        assert not check_stored_weights(digests, read).met
