"""Texts are the same however the rows are put together, and no batch is too large for long."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlmtune.errors import UserError
from vlmtune.evaluation import generation
from vlmtune.evaluation.decoding import Decoder, capturing_pays
from vlmtune.evaluation.generation import ahead, describe, describe_batch, write_texts
from vlmtune.models.step_graph import StepGraph

OPTIONS = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def one_by_one(demo_model: tuple[Any, Any], questions: Any) -> list[str]:
    """What the model writes for each row alone."""
    rows = (questions[[number]] for number in range(len(questions)))
    return [describe_batch(*demo_model, row, OPTIONS)[0] for row in rows]


@pytest.mark.parametrize("size", [1, 3, 7, 100, "auto"])
def test_texts_do_not_depend_on_the_batch(
    demo_model: tuple[Any, Any], questions: Any, one_by_one: list[str], size: int | str
) -> None:
    """In the order of the rows, whatever was described together."""
    written, seconds = describe(*demo_model, questions, OPTIONS, size, label="demo")
    texts = [each.text for each in written]
    assert texts == one_by_one
    assert len(set(texts)) > 1 and seconds > 0


def test_longest_rows_come_first(demo_model: tuple[Any, Any], questions: Any) -> None:
    """Each row once, with its tokens and its share of the time."""
    batches = list(write_texts(*demo_model, questions, OPTIONS, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    rows = [written.row for batch in batches for written in batch]
    assert sorted(rows) == list(range(7)) and rows[0] == 3 and rows[-1] == 4
    assert all(0 < written.tokens <= 12 for batch in batches for written in batch)
    assert all(written.seconds > 0 for batch in batches for written in batch)


@pytest.mark.parametrize("limit", [4, 12, 14, 17, 40])
def test_a_text_without_its_end_is_cut(
    demo_model: tuple[Any, Any], questions: Any, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that need more tokens, end-of-text token included, than they may have; one that ends
    at the limit is whole. How many there are is logged, and what to raise."""
    whole, _ = describe(*demo_model, questions, OPTIONS | {"max_new_tokens": 64}, 3, label="demo")
    lengths = [each.tokens for each in whole]
    assert not any(each.cut for each in whole) and min(lengths) == 12 and max(lengths) == 18
    caplog.clear()
    written, _ = describe(*demo_model, questions, OPTIONS | {"max_new_tokens": limit}, 3, "demo")
    assert [each.cut for each in written] == [length > limit for length in lengths]
    cut = sum(each.cut for each in written)
    said = f"{cut} of 7 descriptions were cut at {limit} tokens; raise generation.max_new_tokens"
    assert (said in caplog.text) == bool(cut)


@pytest.mark.parametrize("rows_that_fit", [1, 2, 5])
def test_a_batch_that_does_not_fit_is_halved(
    demo_model: tuple[Any, Any],
    questions: Any,
    one_by_one: list[str],
    rows_that_fit: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes on with what fits, and writes the same."""
    tried = _limit_memory(monkeypatch, rows_that_fit)
    with caplog.at_level(logging.INFO):
        written, _ = describe(*demo_model, questions, OPTIONS, 7, label="demo")
    assert [each.text for each in written] == one_by_one
    assert max(tried[-3:]) <= rows_that_fit
    assert "7 rows do not fit into memory; going on with 3" in caplog.text


def test_rows_before_the_one_that_does_not_fit_are_not_done_again(
    demo_model: tuple[Any, Any], questions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens later, each row is handed out once."""
    answer, calls = Decoder.answer, []

    def fails_once(self: Decoder, pieces: Any, together: int, longest: int) -> Any:
        calls.append(together)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no memory")
        return answer(self, pieces, together, longest)

    monkeypatch.setattr(Decoder, "answer", fails_once)
    written = [
        each.row for batch in write_texts(*demo_model, questions, OPTIONS, 4) for each in batch
    ]
    assert sorted(written) == list(range(7))
    assert calls == [4, 3, 1, 1, 1]


def test_a_row_that_does_not_fit_alone_is_told(
    demo_model: tuple[Any, Any], questions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing left to halve."""
    _limit_memory(monkeypatch, 0)
    with pytest.raises(UserError, match="does not hold a single row"):
        describe(*demo_model, questions, OPTIONS, 4, label="demo")


def _limit_memory(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[int]:
    """Make larger batches run out of memory; returns the list of what was tried."""
    answer, tried = Decoder.answer, []

    def limited(self: Decoder, pieces: Any, together: int, longest: int) -> Any:
        tried.append(together)
        if tried[-1] > rows:
            raise torch.OutOfMemoryError("no memory")
        return answer(self, pieces, together, longest)

    monkeypatch.setattr(Decoder, "answer", limited)
    return tried


@pytest.mark.parametrize("read_together", [1, 2, 100])
def test_a_static_cache_writes_the_same(
    demo_model: tuple[Any, Any],
    questions: Any,
    one_by_one: list[str],
    monkeypatch: pytest.MonkeyPatch,
    read_together: int,
) -> None:
    """As on a GPU, but for the graph: prompts are read in pieces into one cache, which is kept
    from batch to batch while the size is the same."""
    caches, prepare = [], Decoder._prepare_cache

    def watched(self: Decoder, *args: Any) -> None:
        prepare(self, *args)
        caches.append(self._cache)

    monkeypatch.setattr(generation, "capturing_pays", lambda *_: True)
    monkeypatch.setattr(generation, "rows_to_read", lambda *_: read_together)
    monkeypatch.setattr(Decoder, "_prepare_cache", watched)
    monkeypatch.setattr("vlmtune.evaluation.decoding.StepGraph", PlainSteps)
    written, _ = describe(*demo_model, questions, OPTIONS, 3, label="demo")
    assert [each.text for each in written] == one_by_one
    assert [cache.layers[0].keys.shape[0] for cache in caches] == [3, 3, 1]
    assert caches[0] is caches[1]


def test_a_prompt_longer_than_it_was_counted(
    demo_model: tuple[Any, Any],
    questions: Any,
    one_by_one: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was read before it is read again, with room for it."""
    monkeypatch.setattr(generation, "capturing_pays", lambda *_: True)
    monkeypatch.setattr(generation, "prompt_lengths", lambda rows: [1] * len(rows))
    monkeypatch.setattr(generation, "rows_to_read", lambda *_: 2)
    monkeypatch.setattr("vlmtune.evaluation.decoding.fixed_length", lambda tokens: tokens)
    monkeypatch.setattr("vlmtune.evaluation.decoding.StepGraph", PlainSteps)
    written, _ = describe(*demo_model, questions, OPTIONS, 3, label="demo")
    assert [each.text for each in written] == one_by_one


class PlainSteps(StepGraph):
    """Without a GPU nothing can be captured: steps are run as they come."""

    def _step(self, inputs: dict[str, Any]) -> Any:
        return self._own(**inputs)


@pytest.mark.parametrize(
    ("changed", "options", "pays"),
    [
        ({}, {"max_new_tokens": 100}, True),
        ({}, {"max_new_tokens": 4}, False),
        ({}, {}, False),
        ({}, {"max_new_tokens": 100, "disable_compile": True}, False),
        ({"device": torch.device("cpu")}, {"max_new_tokens": 100}, False),
        ({"_can_compile_fullgraph": False}, {"max_new_tokens": 100}, False),
        ({"_supports_flash_attn": False}, {"max_new_tokens": 100}, False),
        ({"create_masks_for_generate": print}, {"max_new_tokens": 100}, False),
    ],
    ids=["much", "little", "unknown", "forbidden", "cpu", "moving", "no packs", "own masks"],
)
def test_when_capturing_pays(
    demo_model: tuple[Any, Any], changed: dict[str, Any], options: dict[str, Any], pays: bool
) -> None:
    """On a GPU, for a model whose step is the same each time, for long enough; below an adapter
    too."""
    own = demo_model[0]
    plain = {"device": torch.device("cuda"), "config": own.config, "forward": own.forward}
    plain |= {"_can_compile_fullgraph": True, "_supports_flash_attn": True}
    model = SimpleNamespace(**(plain | changed))
    assert capturing_pays(model, options) is pays
    assert capturing_pays(SimpleNamespace(get_base_model=lambda: model), options) is pays


def test_work_ahead_keeps_its_order_and_its_errors() -> None:
    """Results come in turn; an error comes where its result would have."""

    def halve(number: int) -> int:
        if number % 2:
            raise ValueError(number)
        return number // 2

    assert list(ahead(halve, range(0, 20, 2), threads=3)) == list(range(10))
    results = ahead(halve, [0, 2, 3, 4], threads=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="3"):
        next(results)


def test_threads_that_work_ahead_take_a_core_each() -> None:
    """All others have as many as before."""
    own = torch.get_num_threads()
    assert set(ahead(lambda _: torch.get_num_threads(), range(4), threads=2)) == {1}
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == own


def test_little_is_worked_ahead() -> None:
    """Only a few batches of pictures are in memory at a time."""
    started: list[int] = []
    work: Callable[[int], None] = started.append
    results = ahead(work, range(100), threads=2)
    next(results)
    results.close()
    assert len(started) <= 3
