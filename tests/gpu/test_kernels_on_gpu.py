"""Kernels on a real GPU, at a 7B's sizes, against what they stand in for.

python -m pytest -m gpu
"""

import pytest

pytestmark = pytest.mark.gpu


def test_attention_to_what_is_visible() -> None:
    """In bf16, rows of different lengths, also replayed from a CUDA graph."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from tests.tolerance import distance, rounding_bound
    from vlmtune.models.decode_attention import heads_together, visible_keys

    made = torch.Generator("cuda").manual_seed(0)
    shapes = [(64, 28, 1, 128), (64, 4, 896, 128), (64, 4, 896, 128)]
    parts = [torch.randn(shape, device="cuda", generator=made).bfloat16() for shape in shapes]
    first = torch.randint(0, 500, (64, 1), device="cuda", generator=made)
    places = torch.arange(896, device="cuda")
    mask = ((places >= first) & (places < 600))[:, None, None]
    expected = heads_together(*(part.double() for part in parts), mask, 0.1)
    found = visible_keys(*parts, mask, 0.1)
    # The kernel rounds weights and result; what it sums it sums in fp32.
    assert distance(found, expected) <= rounding_bound(torch.bfloat16, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = visible_keys(*parts, mask, 0.1)
    graph.replay()
    assert torch.equal(replayed, found)


def test_the_vision_tower_takes_its_kernels(caplog: pytest.LogCaptureFixture) -> None:
    """None of them is turned down, and features are those of the tower without them."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from tests.tolerance import distance, rounding_bound
    from tests.unit.families import FAMILIES, qwen_picture
    from vlmtune.models.tower_kernels import fused_tower

    caplog.set_level("INFO", "vlmtune")
    model = FAMILIES["qwen2_vl"].model().to("cuda", torch.bfloat16)
    _, picture = qwen_picture((8, 9), 14)
    pictures = picture["pixel_values"].to("cuda", torch.bfloat16), picture["image_grid_thw"].cuda()
    with torch.no_grad():
        own = model.get_image_features(*pictures).pooler_output[0]
        with fused_tower(model):
            for _ in range(2):
                found = model.get_image_features(*pictures).pooler_output[0]
    # In each of two layers a kernel rounds angles, queries, keys and activations otherwise.
    assert distance(found, own) <= rounding_bound(torch.bfloat16, 2 * 4)
    assert "is not used" not in caplog.text
