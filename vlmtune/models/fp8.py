"""Frozen weights in fp8 while training: matrix products at twice the rate of bf16.

The 4-bit weights are unpacked once and rounded to fp8 (e4m3), with a scale for each output row;
activations and gradients are rounded on the fly, with a scale for each token. Products are summed
in fp32. Only frozen weights are replaced: the adapter stays as it is. It takes an Nvidia card of
Ada's or Hopper's generation or later, and pays with `torch_compile` only, which fuses the rounding.
"""

from typing import TYPE_CHECKING, Any

import torch

from vlmtune.models.quantized import four_bit_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FP8 = torch.float8_e4m3fn
CAPABILITY = (8, 9)  # the first cards with fp8 products


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies fp8; a CPU does it slowly, for tests."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= CAPABILITY


def round_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to fp8 with a scale for each row.

    Args:
        values: [rows, columns].

    Returns:
        fp8 values [rows, columns] and fp32 scales [rows, 1]; their product is about `values`.
    """
    largest = values.abs().amax(dim=-1, keepdim=True).float()
    # Not a constant of the module: torch 2.11 would make a variable of it, and fail to compile.
    scale = largest.clamp(min=1e-12) / torch.finfo(FP8).max
    return (values * (1 / scale).to(values.dtype)).to(FP8), scale


class _Fp8Product(torch.autograd.Function):
    """x @ weight.T with gradients for x alone."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: Any
    ) -> torch.Tensor:
        """x [..., in], weight [out, in] in fp8, scale [out, 1] -> [..., out] in bf16."""
        ctx.save_for_backward(weight, scale)
        rounded, scales = round_rows(x.reshape(-1, x.shape[-1]))
        product = torch._scaled_mm(
            rounded,
            weight.t(),
            scale_a=scales,
            scale_b=scale.t(),
            bias=bias,
            out_dtype=torch.bfloat16,
        )
        return product.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """The weight's scales go into the gradient, so that one fp8 copy serves both ways."""
        weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        scaled = gradient.reshape(-1, gradient.shape[-1]) * scale.t().to(gradient.dtype)
        rounded, scales = round_rows(scaled)
        transposed = weight.view(torch.uint8).t().contiguous().view(FP8)
        product = torch._scaled_mm(
            rounded,
            transposed.t(),
            scale_a=scales,
            scale_b=torch.ones(1, weight.shape[1], device=weight.device),
            out_dtype=torch.bfloat16,
        )
        return product.reshape(*gradient.shape[:-1], -1), None, None, None


class Fp8Linear(torch.nn.Module):
    """A frozen 4-bit linear layer with its weights in fp8."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        from bitsandbytes.functional import dequantize_4bit

        self.in_features, self.out_features = layer.in_features, layer.out_features
        values = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        weight, scale = round_rows(values.to(torch.bfloat16))
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out], bf16."""
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        return _Fp8Product.apply(x.to(torch.bfloat16), self.weight, self.scale, bias)


def hold_weights_in_fp8(model: "PreTrainedModel") -> int:
    """Replace the decoder's frozen 4-bit layers, those below an adapter included.

    Returns:
        How many layers were replaced.
    """
    layers = four_bit_layers(model.get_decoder())
    replaced = len(layers)
    while layers:  # one by one, so that no 4-bit weight is held once it is replaced
        parent, name, layer = layers.pop()
        setattr(parent, name, Fp8Linear(layer))
    return replaced
