"""Token by token with one model: by a compiled step and a cache of fixed size where that pays.

Reading the weights of a 7B takes a GPU a few milliseconds a token; launching its kernels one by
one takes the CPU ten times as long. So the step is compiled into one CUDA graph, which needs a
cache whose size and place do not change.
"""

from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, StaticCache

from vlmtune.evaluation.batches import fixed_length

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

WORTH_COMPILING = 200_000  # new tokens: what is generated uncompiled while it compiles
OWN_WAY = ("cache_implementation", "use_cache", "disable_compile", "num_beams")  # left as they are


class Decoder:
    """Writes the answers to encoded prompts.

    Args:
        options: of transformers.GenerationConfig; what is not said stands in the model's own.
        static: keep one cache of fixed size, which lets transformers compile the step on a GPU.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        options: dict[str, Any],
        static: bool = False,
    ) -> None:
        self.model, self.processor, self.static = model, processor, static
        self.config = GenerationConfig(**{**model.generation_config.to_diff_dict(), **options})
        self._cache: StaticCache | None = None
        self._cache_size = (0, 0)

    @torch.no_grad()
    def answer(self, inputs: "BatchFeature") -> list[tuple[str, int]]:
        """The text of each answer and the tokens it took."""
        inputs = inputs.to(self.model.device)
        rows, length = inputs["input_ids"].shape
        given = {"past_key_values": self._cache_for(rows, length)} if self.static else {}
        tokens = self.model.generate(**inputs, **given, generation_config=self.config)
        answers = tokens[:, length:]
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        return [
            (text.strip(), count) for text, count in zip(texts, self._counts(answers), strict=True)
        ]

    def _counts(self, answers: torch.Tensor) -> list[int]:
        padding = self.config.pad_token_id
        written = answers != padding if padding is not None else torch.ones_like(answers)
        return [int(count) for count in written.sum(dim=1)]

    def _cache_for(self, rows: int, length: int) -> StaticCache:
        """The same cache as before if it has the right size: the compiled step is bound to it."""
        size = (rows, fixed_length(length) + self.config.max_new_tokens)
        if self._cache is None or size != self._cache_size:
            self.forget()
            text = self.model.config.get_text_config(decoder=True)
            self._cache, self._cache_size = StaticCache(config=text, max_cache_len=size[1]), size
        self._cache.reset()
        return self._cache

    def forget(self) -> None:
        """Let go of the cache."""
        self._cache, self._cache_size = None, (0, 0)


def compiling_pays(model: Any, options: dict[str, Any], rows: int) -> bool:
    """Whether so many rows are described faster by a compiled step, and the model allows it.

    A quantised model is not compiled by transformers. Whoever sets how the cache works, in
    `generation`, has it so.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model  # of an adapter
    quantized = getattr(core, "is_quantized", False) or getattr(core, "is_loaded_in_4bit", False)
    return (
        core.device.type == "cuda"
        and not quantized
        and getattr(core, "_can_compile_fullgraph", False)
        and not any(name in options for name in OWN_WAY)
        and rows * (options.get("max_new_tokens") or 0) >= WORTH_COMPILING
    )
