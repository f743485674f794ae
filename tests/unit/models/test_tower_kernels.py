"""What stands in for parts of a vision tower while a model writes; kernels in Triton have tests of
their own."""

import torch

from tests.tolerance import assert_within, rounding_bound
from tests.unit.families import FAMILIES
from vlmtune.models.tower_kernels import embed_patches, fused_tower


def test_patches_are_embedded_in_one_product() -> None:
    """As the convolution does it; an input that the kernel does not cover is convolved."""
    torch.manual_seed(0)
    own = torch.nn.Conv3d(3, 8, kernel_size=(2, 4, 4), stride=(2, 4, 4))
    patches, film = torch.randn(5, 3, 2, 4, 4), torch.randn(5, 3, 4, 8, 8)
    with torch.no_grad():
        products = torch.einsum("pcfhw,ecfhw->pe", patches.abs(), own.weight.abs())
        terms = own.weight[0].numel() + 1  # and the bias
        bound = rounding_bound(torch.float32, 2 * terms, products + own.bias.abs())
        assert_within(embed_patches(own, patches).flatten(1), own(patches).flatten(1), bound)
    assert torch.equal(embed_patches(own, film), own(film))


def test_a_tower_gets_its_own_parts_back() -> None:
    """Each module computes by itself again."""
    model = FAMILIES["qwen2_vl"].model()
    with fused_tower(model):
        assert any("forward" in vars(module) for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
