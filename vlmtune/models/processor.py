"""The processor of a model: its tokenizer, chat template and picture handling, without weights."""

from typing import TYPE_CHECKING, Any

from vlmtune.config.model import ModelConfig
from vlmtune.errors import UserError

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def load_processor(name: str, commit: str | None, config: ModelConfig) -> "ProcessorMixin":
    """Load the processor and set the configured picture limits, which are saved with it."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(
        name, revision=commit, trust_remote_code=config.trust_remote_code
    )
    _limit_pixels(processor, config)
    processor.tokenizer.padding_side = "left"
    return processor


def _limit_pixels(processor: Any, config: ModelConfig) -> None:
    """Set smallest and largest picture area, in pixels, where the processor resizes by area."""
    if config.min_pixels is None and config.max_pixels is None:
        return
    image_processor = processor.image_processor
    size = dict(image_processor.size)
    if not {"shortest_edge", "longest_edge"} <= set(size):
        raise UserError(
            "this model's processor has no picture area to limit.",
            "Remove model.min_pixels and model.max_pixels from the config.",
        )
    # Qwen's processors keep the smallest and largest *area* under these two names.
    size["shortest_edge"] = config.min_pixels or size["shortest_edge"]
    size["longest_edge"] = config.max_pixels or size["longest_edge"]
    image_processor.size = type(image_processor.size)(**size)
