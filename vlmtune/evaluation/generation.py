"""Descriptions for many rows: batched, longest prompts first, greedy unless told otherwise.

Evaluation and `--pipeline describe` both write with this. Pictures of the next batches are decoded
and encoded in threads while the model writes; a batch that does not fit into memory is halved.
"""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vlmtune.encoding import encode_prompts
from vlmtune.errors import UserError
from vlmtune.evaluation.batches import (
    AUTO,
    MOST_AHEAD,
    input_workers,
    plan_batches,
    prompt_lengths,
    rows_that_fit,
    rows_to_read,
)
from vlmtune.evaluation.decoding import Decoder, LongerPrompt, capturing_pays
from vlmtune.evaluation.prompt_packs import PromptPack, pack_prompts
from vlmtune.models.adapter import without_wrapper
from vlmtune.models.inference import made_ready
from vlmtune.models.positions import numbering, prompt_positions
from vlmtune.models.quantized import release_unused_memory
from vlmtune.models.shared_tokenizer import for_this_thread, with_shared_tokenizer
from vlmtune.progress import rows_progress

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class WrittenText:
    """What a model wrote for a row.

    Attributes:
        row: its place in the rows given.
        tokens: that were generated.
        cut: whether it was cut by `max_new_tokens`.
        seconds: the row's share of its batch.
    """

    row: int
    text: str
    tokens: int
    cut: bool
    seconds: float


def describe(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    rows: "Dataset",
    options: dict[str, Any],
    batch_size: int | str,
    label: str,
) -> tuple[list[WrittenText], float]:
    """Write a description for each row.

    Args:
        rows: with the columns `prompt` and `images`.
        options: of transformers.GenerationConfig.
        batch_size: rows at a time, or `auto`.
        label: shown beside the progress bar.

    Returns:
        The descriptions in the order of the rows, and the seconds it took.
    """
    start = time.monotonic()
    found: list[WrittenText] = []
    with rows_progress(f"Describing with the {label} model", len(rows)) as advance:
        for batch in write_texts(model, processor, rows, options, batch_size):
            found += batch
            advance(len(batch))
    seconds = time.monotonic() - start
    logger.info("%s model: %d rows, %.1f rows/s", label, len(rows), len(rows) / seconds)
    if cut := sum(each.cut for each in found):
        logger.warning("%s model: %s", label, cut_in_words(cut, len(rows), options))
    return sorted(found, key=lambda each: each.row), round(seconds, 2)


def cut_in_words(cut: int, rows: int, options: dict[str, Any]) -> str:
    """How many descriptions are incomplete, and what to do about it."""
    most = options.get("max_new_tokens")
    return (
        f"{cut} of {rows} descriptions were cut at {most} tokens; raise generation.max_new_tokens"
    )


def describe_batch(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    batch: dict[str, list[Any]],
    options: dict[str, Any],
) -> list[str]:
    """Write a description for each row of a batch with the columns `prompt` and `images`."""
    inputs = encode_prompts(processor, batch["prompt"], batch["images"])
    rows, longest = inputs["input_ids"].shape
    answers = Decoder(model, processor, options).answer([inputs], rows, longest)
    return [each.text for each in answers]


def write_texts(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    rows: "Dataset",
    options: dict[str, Any],
    batch_size: int | str,
) -> Iterator[list[WrittenText]]:
    """Write a description for each row, and hand them out batch by batch as they are done.

    Args:
        rows, options, batch_size: as for `describe`.

    Raises:
        UserError: a single row does not fit into memory.
    """
    model.eval()
    with made_ready(model):
        shared, static = with_shared_tokenizer(processor), capturing_pays(model, options)
        decoder = Decoder(model, shared, options, static)
        try:
            yield from _write_all(decoder, rows, batch_size)
        finally:
            decoder.close()


def _write_all(
    decoder: Decoder, rows: "Dataset", batch_size: int | str
) -> Iterator[list[WrittenText]]:
    model = decoder.model
    # Rows of like length go together, so that little is padded; longest first, so that a batch
    # which does not fit into memory fails at once.
    lengths = prompt_lengths(rows)
    order = sorted(range(len(rows)), key=lambda row: -lengths[row])
    sizes = BatchSizes(decoder, batch_size)
    while order:
        batches = [
            list(plan_batches(batch, lengths, sizes.read_together))
            for batch in plan_batches(order, lengths, sizes)
        ]
        pieces = [piece for batch in batches for piece in batch]
        depth = min(max(len(batch) for batch in batches), MOST_AHEAD)
        encoded = ahead(_Encoder(decoder, rows), pieces, input_workers(model.device), depth)
        tried, fits = 0, True
        try:
            for batch in batches:
                together = [row for piece in batch for row in piece]
                tried, longest = len(together), max(lengths[row] for row in together)
                yield _write(decoder, together, islice(encoded, len(batch)), longest)
                order = order[tried:]
        except LongerPrompt as longer:
            lengths = [max(length, longer.tokens) for length in lengths]
        except torch.OutOfMemoryError:
            fits = False  # what the error holds on to is let go of when this block is left
        finally:
            encoded.close()
        if not fits:
            decoder.forget()
            release_unused_memory()
            sizes.halve(tried)


class BatchSizes:
    """How many rows go together: as told, or an estimate, and never more than have fitted."""

    def __init__(self, decoder: Decoder, told: int | str) -> None:
        self.model, self.in_pieces, self.told = decoder.model, decoder.static, told
        self.new_tokens = decoder.config.max_new_tokens or 0
        self.most: int | None = None

    def __call__(self, length: int) -> int:
        """Rows with prompts of at most so many tokens that are written together."""
        if self.told == AUTO:
            size = rows_that_fit(self.model, length, self.new_tokens, self.in_pieces)
        else:
            size = int(self.told)
        return size if self.most is None else min(size, self.most)

    def read_together(self, length: int) -> int:
        """Of these, rows whose prompts are read together."""
        return rows_to_read(self.model, length) if self.in_pieces else sys.maxsize

    def halve(self, rows: int) -> None:
        """So many rows were too many.

        Raises:
            UserError: it was one row.
        """
        if rows <= 1:
            raise UserError(
                "the memory does not hold a single row with its description.",
                "Lower model.max_pixels or generation.max_new_tokens.",
            )
        self.most = rows // 2
        logger.info("%d rows do not fit into memory; going on with %d", rows, self.most)


def _write(
    decoder: Decoder, rows: list[int], pieces: Iterable[Any], longest: int
) -> list[WrittenText]:
    start = time.monotonic()
    answers = decoder.answer(pieces, len(rows), longest)
    share = (time.monotonic() - start) / len(answers)
    return [
        WrittenText(row, each.text, each.tokens, each.cut, share)
        for row, each in zip(rows, answers, strict=True)
    ]


class _Encoder:
    """Decodes the pictures of a batch and encodes it, in any of several threads.

    Each has a processor of its own, with the tokenizer that all share with the thread in which
    answers are decoded.
    """

    def __init__(self, decoder: Decoder, rows: "Dataset") -> None:
        model = decoder.model
        self.processor, self.rows, self.packs = decoder.processor, rows, decoder.static
        self.get_rope_index = numbering(without_wrapper(model).base_model)
        self.dtype, self.on_gpu = model.dtype, model.device.type == "cuda"
        self.own = threading.local()

    def __call__(self, batch: list[int]) -> "BatchFeature | PromptPack":
        if not hasattr(self.own, "processor"):
            self.own.processor = for_this_thread(self.processor)
        columns = self.rows[batch]
        inputs = encode_prompts(self.own.processor, columns["prompt"], columns["images"])
        if self.get_rope_index:
            inputs["position_ids"] = prompt_positions(self.get_rope_index, inputs)
        if self.on_gpu:  # what the model would cast them to, half as many bytes to carry
            inputs = inputs.to(self.dtype)
        if self.packs:
            pack = pack_prompts(inputs)
            return pack.pinned() if self.on_gpu else pack
        return inputs


def ahead(
    work: Callable[[T], R], items: Iterable[T], threads: int, depth: int | None = None
) -> Generator[R, None, None]:
    """The result for each item in turn, while those of the next ones are made in threads.

    Each thread's tensors are computed on one core: several threads with all cores each would take
    them from the one that has the GPU to keep busy.

    Args:
        depth: how many are made ahead, if more than there are threads.
    """
    pool = ThreadPoolExecutor(threads, "encode-prompts", torch.set_num_threads, (1,))
    try:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > max(threads, depth or 0):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(torch.get_num_threads())  # what threads that start later have again
