"""One tokenizer for several threads."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from vlmtune.models.shared_tokenizer import for_this_thread, with_shared_tokenizer

TEXTS = [["a striped mug", "mug"], ["a very wide bowl with dots"] * 300]


def encode(processor: Any, turn: int) -> tuple[Any, Any]:
    """With padding and without in turn: each call changes the tokenizer's settings."""
    options = {"padding": turn % 2 == 1, "padding_side": "left"}
    encoded = processor.tokenizer(TEXTS[turn % 2], **options)["input_ids"]
    return encoded, processor.batch_decode(encoded)


def test_threads_get_what_they_would_get_alone(demo_model: tuple[Any, Any]) -> None:
    """Whatever the others ask for at the same time."""
    _, processor = demo_model
    alone = [encode(processor, turn) for turn in (0, 1)]
    shared = for_this_thread(with_shared_tokenizer(processor))
    assert isinstance(shared.tokenizer, type(processor.tokenizer))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(partial(encode, shared), range(100))) == alone * 50


class Watched:
    """A tokenizer's place: how many threads are in it at most."""

    inside = most = 0

    def __call__(self, seconds: float) -> None:
        Watched.inside += 1
        Watched.most = max(Watched.most, Watched.inside)
        time.sleep(seconds)
        Watched.inside -= 1

    decode = batch_decode = __call__


@pytest.mark.parametrize("way", ["__call__", "decode", "batch_decode"])
def test_one_thread_at_a_time(way: str) -> None:
    """Encoding or decoding; the tokenizer that was given has no such rule."""
    plain: Any = SimpleNamespace(tokenizer=Watched())
    for processor, expected in ((with_shared_tokenizer(plain), 1), (plain, 4)):
        Watched.most = 0
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(getattr(processor.tokenizer, way), [0.05] * 4))
        assert Watched.most == expected


def test_copies_for_threads_share_the_tokenizer_alone(demo_model: tuple[Any, Any]) -> None:
    """The processor that was given is left as it was."""
    _, processor = demo_model
    own = processor.tokenizer
    shared = with_shared_tokenizer(processor)
    copy = for_this_thread(shared)
    assert copy.tokenizer is shared.tokenizer
    assert copy.image_processor is not shared.image_processor
    assert processor.tokenizer is own and type(own) is not type(shared.tokenizer)
