"""What training will take on this machine: `auto` replaced by figures, before anything runs."""

from typing import Any

from vlmtune.config.training import CPU_PACK_TOKENS
from vlmtune.config.tree import FinetuneConfig
from vlmtune.models.base_model import BaseModelRef

AUTO = "auto"
USUAL_TOKENS = 500  # of a row; how many there are is known once the catalog is read


def resolve_training(config: FinetuneConfig, base: BaseModelRef) -> tuple[FinetuneConfig, str]:
    """Work out the size of packs and checkpointing for this machine's card.

    Returns:
        The config without `auto` in these two, and the plan in words. Where the card is not on
        this machine, `auto` stays for the step that trains.
    """
    card = None if config.model.device == "cpu" else _card()
    if card is None:
        return _without_card(config)
    from vlmtune.models.kernels import layers_compiled, layers_fused
    from vlmtune.training import memory_plan

    fp8 = config.compute.frozen_weights == "fp8"
    kernels = layers_compiled(config.training, fp8) or layers_fused(config.training)
    shape = memory_plan.shape_of(
        _model_config(config, base), config.quantization, config.lora, kernels, fp8
    )
    tokens, checkpointing = memory_plan.pick(shape, card.total_memory, *_wanted(config))
    plan = memory_plan.plan_memory(
        shape, tokens, bool(checkpointing), cached=config.vision_cache.enabled
    )
    speed = memory_plan.tokens_per_second(shape, bool(checkpointing), memory_plan.matrix_ceiling())
    words = (
        f"packs of at most {tokens:,} tokens, checkpointing {'on' if checkpointing else 'off'}: "
        f"at most {plan.peak_gib:.1f} of {card.total_memory / memory_plan.GIB:.1f} GiB on "
        f"{card.name} (weights {plan.weights_gib:.1f}, activations {plan.activations_gib:.1f}, "
        f"adapter {plan.adapter_gib:.1f}, working space {plan.working_gib:.1f}), about "
        f"{speed:,.0f} tokens/s, so {1_000 * USUAL_TOKENS / speed:,.0f} s an epoch for each 1,000 "
        f"rows of {USUAL_TOKENS} tokens"
    )
    return _with(config, tokens, checkpointing), words


def _without_card(config: FinetuneConfig) -> tuple[FinetuneConfig, str]:
    if config.model.device != "cpu":
        return config, "no GPU here: packs and checkpointing are worked out where training runs"
    tokens, checkpointing = _wanted(config)
    resolved = _with(
        config,
        CPU_PACK_TOKENS if tokens == AUTO else tokens,
        False if checkpointing == AUTO else checkpointing,
    )
    return resolved, f"packs of at most {resolved.packing.max_tokens:,} tokens, on the CPU"


def _wanted(config: FinetuneConfig) -> tuple[Any, Any]:
    """Tokens in a pack and checkpointing as configured; TRL checkpoints if nothing is said."""
    return config.packing.max_tokens, config.training.get("gradient_checkpointing", True)


def _with(config: FinetuneConfig, tokens: int, checkpointing: Any) -> FinetuneConfig:
    training = {**config.training, "gradient_checkpointing": checkpointing}
    packing = config.packing.model_copy(update={"max_tokens": tokens})
    return config.model_copy(update={"packing": packing, "training": training})


def _card() -> Any:
    """Properties of the GPU; None without one."""
    import torch

    return torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None


def _model_config(config: FinetuneConfig, base: BaseModelRef) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        base.id, revision=base.commit, trust_remote_code=config.model.trust_remote_code
    )
