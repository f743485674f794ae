"""From encoded prompts to texts with one model.

On a GPU the prompts of a batch are read in packs without padding, as in training, into one cache
of fixed size; then all rows are written together, by a captured step. Elsewhere, and for models
whose cache or masks are of another kind, a batch goes to `generate` as it is.
"""

import inspect
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import pad
from transformers import Cache, DynamicCache, StaticCache

from vlmtune.evaluation.batches import fixed_length
from vlmtune.evaluation.prompt_packs import BY_TOKEN, PromptPack
from vlmtune.evaluation.writing import write_ahead
from vlmtune.models.adapter import without_wrapper
from vlmtune.models.attention import packed_attention
from vlmtune.models.decode_attention import GROUPED
from vlmtune.models.generation_config import resolve_generation
from vlmtune.models.step_graph import StepGraph, takes_static_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

SDPA = ("sdpa", GROUPED)
WORTH_CAPTURING = 16  # new tokens of a row: capturing takes as long as a few steps
OWN_WAY = ("cache_implementation", "use_cache", "disable_compile", "num_beams")  # left as they are


class DecodedText(NamedTuple):
    """An answer, the tokens it took, and whether it was cut: `max_new_tokens` came before any
    end-of-text token."""

    text: str
    tokens: int
    cut: bool


class LongerPrompt(Exception):
    """A prompt has more tokens than was said, and where the others lie depends on it."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"a prompt of {tokens} tokens")
        self.tokens = tokens


class Decoder:
    """Writes the answers to encoded prompts.

    Args:
        options: of transformers.GenerationConfig; what is not said stands in the model's own.
        static: keep one cache of fixed size, and run the step as a CUDA graph. `close` gives the
            model its own forward back.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        options: dict[str, Any],
        static: bool = False,
    ) -> None:
        self.model, self.processor, self.static = model, processor, static
        self.config = resolve_generation(model, options)
        if self.config.do_sample:  # no token can be sampled from NaN; the loss shows it
            self.config.remove_invalid_values = True
        self._core: Any = without_wrapper(model)
        self._cache: StaticCache | None = None
        self._cache_size = (0, 0)
        self._graph: StepGraph | None = None
        if static:
            self.config.disable_compile = True  # the graph needs none of the minutes it takes
            self._graph = StepGraph(self._core)

    @torch.no_grad()
    def answer(self, pieces: Iterable[Any], rows: int, longest: int) -> list[DecodedText]:
        """The answer to each prompt.

        Args:
            pieces: the rows of a batch: packs with a static cache, which are read as they come;
                else one padded batch.
            rows: in all pieces.
            longest: tokens that no prompt exceeds.

        Raises:
            LongerPrompt: with a static cache, a prompt does.
        """
        inputs: Any
        if self.static:
            inputs, loop = self._read(pieces, rows, longest), {"custom_generate": write_ahead}
        else:
            (whole,) = pieces
            inputs, loop = whole.to(self.model.device), {}
        tokens = self.model.generate(**inputs, generation_config=self.config, **loop)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        facts = zip(texts, self._counts(answers), self._cut(answers), strict=True)
        return [DecodedText(text.strip(), count, cut) for text, count, cut in facts]

    def _counts(self, answers: torch.Tensor) -> list[int]:
        padding = self.config.pad_token_id
        written = answers != padding if padding is not None else torch.ones_like(answers)
        return written.sum(dim=1).tolist()

    def _cut(self, answers: torch.Tensor) -> list[bool]:
        """Whether each answer was still being written when generation stopped: it holds no token
        that ends it, and no padding after it."""
        ends, padding = self.config.eos_token_id, self.config.pad_token_id
        stops = torch.tensor([] if ends is None else ends, device=answers.device).reshape(-1)
        ended = torch.isin(answers, stops.to(answers.dtype)).any(dim=1)
        if padding is not None:
            ended = ended | (answers[:, -1] == padding)
        return (~ended).tolist()

    def _read(self, packs: Iterable[PromptPack], rows: int, longest: int) -> dict[str, Any]:
        """Read all prompts but their last tokens into the cache.

        Returns:
            What `generate` needs to go on from there: a batch that is padded to a fixed length,
            without its pictures.
        """
        length, at = fixed_length(longest), 0
        padded: dict[str, list[torch.Tensor]] = {name: [] for name in BY_TOKEN}
        for pack in packs:
            missing = length - pack.shape[1]
            if missing < 0:
                raise LongerPrompt(pack.shape[1])
            pack = pack.on(self.model.device)
            read = self._keys_and_values(pack)
            if at == 0:
                self._prepare_cache(rows, length, read)
            self._keep(read, pack.rows + at, pack.places + missing)
            at += pack.shape[0]
            for name, value in pack.padded.items():
                filler = (self.config.pad_token_id or 0) if name == "input_ids" else 0
                padded[name].append(pad(value, (missing, 0), value=filler))
        assert self._cache is not None
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(length - 1)
        batch = {name: torch.cat(values, dim=-2) for name, values in padded.items()}
        return {**batch, "past_key_values": self._cache}

    def _keys_and_values(self, pack: PromptPack) -> Cache:
        """Of packed prompts; nothing else is computed for them."""
        text = self._core.config.get_text_config(decoder=True)
        read = _KeysAndValues(config=text)
        with packed_attention(text, pack.bounds, pack.longest), suppress(_AllRead):
            self._core.base_model(**pack.packed, past_key_values=read, use_cache=True)
        return read

    def _prepare_cache(self, rows: int, length: int, like: Cache) -> None:
        """The same cache as before if it holds these rows: the captured step is bound to it."""
        places = fixed_length(length + self.config.max_new_tokens)
        held_rows, held_places = self._cache_size
        if self._cache is not None and rows == held_rows and places <= held_places:
            self._cache.reset()
            return
        self.forget()
        text = self._core.config.get_text_config(decoder=True)
        self._cache, self._cache_size = StaticCache(text, max_cache_len=places), (rows, places)
        shapes = [layer.keys.shape for layer in like.layers]
        self._cache.early_initialization(
            rows,
            [shape[1] for shape in shapes],
            [shape[3] for shape in shapes],
            like.layers[0].keys.dtype,
            self.model.device,
        )

    def _keep(self, read: Cache, rows: torch.Tensor, places: torch.Tensor) -> None:
        """Copy what was read into the cache: the row and the place of each token."""
        assert self._cache is not None
        for kept, new in zip(self._cache.layers, read.layers, strict=True):
            kept.keys[rows, :, places] = new.keys[0].transpose(0, 1)
            kept.values[rows, :, places] = new.values[0].transpose(0, 1)

    def forget(self) -> None:
        """Let go of the cache and of what is bound to it."""
        self._cache, self._cache_size = None, (0, 0)
        if self._graph:
            self._graph.forget()

    def close(self) -> None:
        """Leave the model as it was."""
        self.forget()
        if self._graph:
            self._graph.remove()


class _AllRead(Exception):
    """The last layer's keys and values are there; what the model would compute of them is not
    needed."""


class _KeysAndValues(DynamicCache):
    def update(self, key: Any, value: Any, layer: int, *others: Any, **named: Any) -> Any:
        kept = super().update(key, value, layer, *others, **named)
        if layer == len(self.layers) - 1:
            raise _AllRead
        return kept


def capturing_pays(model: Any, options: dict[str, Any]) -> bool:
    """Whether prompts are read in packs and the step becomes a CUDA graph: if the model allows
    both, and answers may be long enough for it.

    Whoever sets how the cache works, in `generation`, has it so.
    """
    core = without_wrapper(model)
    return (
        core.device.type == "cuda"
        and not any(name in options for name in OWN_WAY)
        and (options.get("max_new_tokens") or 0) >= WORTH_CAPTURING
        and core.config.get_text_config(decoder=True)._attn_implementation in SDPA
        and takes_static_cache(core)
        and takes_packs(core)
    )


def takes_packs(model: Any) -> bool:
    """Whether a model, or a class of models, can read several prompts in one row: its attention
    can be replaced by flash attention, no token sees what comes after it, and pictures are among
    the tokens, not beside them."""
    replaceable = getattr(model, "_supports_flash_attn", False)
    own_masks = hasattr(model, "create_masks_for_generate")  # as where pictures see all of a prompt
    beside = "cross_attention_mask" in inspect.signature(model.forward).parameters
    return bool(replaceable) and not own_masks and not beside
