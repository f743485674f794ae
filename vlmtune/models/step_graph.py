"""A decoding step as one CUDA graph.

Reading the weights of a 7B takes a GPU a few milliseconds a token; launching its kernels one by
one takes the CPU ten times as long. A graph of them is launched at once. It needs a cache whose
size and place do not change.
"""

import functools
import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

PLAIN = (torch.Tensor, bool, int, float, str, type(None))
TOKEN_TYPES = "token_type_ids"
MOST_CAPTURES = 4  # for one cache; steps that differ each time are better run as they come
WARM_UPS = 2  # what is allocated or tuned on first use must not happen while a graph is captured


class StepGraph:
    """Stands before a model's forward. One token a row with a static cache is replayed from a
    graph, which is captured when such a call has a new shape; all else is run as ever.

    Args:
        model: without PEFT's wrapper.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self.model: Any = model
        self._own, self._before = model.forward, model.__dict__.get("forward")
        self._shapes: Any = None
        self._held: dict[str, torch.Tensor] = {}
        self._graph: Any = None
        self._output: Any = None
        self._captures = 0
        self._refused = False

        @functools.wraps(self._own)
        def forward(*args: Any, **inputs: Any) -> Any:
            if args or self._refused or not is_step(inputs):
                return self._own(*args, **inputs)
            return self._step(inputs)

        model.forward = forward

    def remove(self) -> None:
        """Leave the model as it was."""
        del self.model.forward
        if self._before is not None:
            self.model.forward = self._before
        self.forget()

    def forget(self) -> None:
        """Let go of the graph and of what it computes with."""
        self._shapes = self._graph = self._output = None
        self._held, self._captures = {}, 0

    def _step(self, inputs: dict[str, Any]) -> Any:
        inputs = of_this_step(inputs)
        tensors = tensors_in(inputs)
        shapes = kind_of(inputs)
        if shapes != self._shapes:
            if reason := self._try_to_capture(inputs):
                logger.info("Decoding without a CUDA graph: %s", reason)
                self._refused = True
                return self._own(**inputs)
            self._shapes = shapes
        for name, each in tensors.items():
            self._held[name].copy_(each)
        self._graph.replay()
        return self._output

    def _try_to_capture(self, inputs: dict[str, Any]) -> str:
        """Capture this step; returns why it cannot be, empty if it could."""
        self._captures += 1
        if self._captures > MOST_CAPTURES:
            return "no step is like the one before"
        try:
            self._capture(inputs, inputs["past_key_values"])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            return str(error).splitlines()[0]
        return ""

    def _capture(self, inputs: dict[str, Any], cache: StaticCache) -> None:
        """Run the step to warm up, then record it. What a run leaves in the cache is written
        again by the next one, once the cache's length is set back."""
        self._graph = self._output = None
        held = {
            name: {key: _copy(each) for key, each in value.items()}
            if isinstance(value, dict)
            else _copy(value)
            for name, value in inputs.items()
        }
        self._held = tensors_in(held)
        lengths = [layer.cumulative_length for layer in cache.layers]
        before = [length.clone() for length in lengths]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._own(**held)
                for length, value in zip(lengths, before, strict=True):
                    length.copy_(value)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Threads that pin the next rows' memory meanwhile are none of this capture's business.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = self._own(**held)


def of_this_step(inputs: dict[str, Any]) -> dict[str, Any]:
    """Without the kinds of earlier tokens, which transformers 5.17 hands on."""
    return {
        name: value[:, -1:] if name.endswith(TOKEN_TYPES) and value is not None else value
        for name, value in inputs.items()
    }


def kind_of(inputs: dict[str, Any]) -> list[Any]:
    """What has to be the same for a graph to serve again: cache, shapes, and plain values."""
    shapes = [(name, each.shape) for name, each in tensors_in(inputs).items()]
    plain = [(name, each) for name, each in inputs.items() if isinstance(each, bool | int | str)]
    return [id(inputs["past_key_values"]), *shapes, *plain]


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def tensors_in(inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors among a forward's inputs, those of a mask for each kind of layer as well."""
    found: dict[str, torch.Tensor] = {}
    for name, value in inputs.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        found |= {f"{name}.{key}": each for key, each in parts if isinstance(each, torch.Tensor)}
    return found


def is_step(inputs: dict[str, Any]) -> bool:
    """Whether a forward's inputs are one token a row, a static cache, and nothing with tensors in
    it that a graph would not be given anew."""
    tokens = inputs.get("input_ids")
    others = {name: each for name, each in inputs.items() if name != "past_key_values"}
    return (
        isinstance(tokens, torch.Tensor)
        and tokens.shape[1] == 1
        and isinstance(inputs.get("past_key_values"), StaticCache)
        and all(
            isinstance(part, PLAIN)
            for each in others.values()
            for part in (each.values() if isinstance(each, dict) else [each])
        )
    )


def takes_static_cache(model: "PreTrainedModel") -> bool:
    """Whether all of a model's layers can keep their keys at a fixed place, and its step needs
    no look at a tensor's values."""
    if not getattr(model, "_can_compile_fullgraph", False):
        return False
    cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=8)
    return all(type(layer) is StaticLayer for layer in cache.layers)
