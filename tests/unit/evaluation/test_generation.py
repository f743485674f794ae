"""Texts are the same however the rows are put together, and no batch is too large for long."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlmtune.errors import UserError
from vlmtune.evaluation.decoding import Decoder, compiling_pays
from vlmtune.evaluation.generation import ahead, describe, describe_batch, write_texts

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
    texts, seconds = describe(*demo_model, questions, OPTIONS, size, label="demo")
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
        texts, _ = describe(*demo_model, questions, OPTIONS, 7, label="demo")
    assert texts == one_by_one
    assert max(tried[-3:]) <= rows_that_fit
    assert "7 rows do not fit into memory; going on with 3" in caplog.text


def test_rows_before_the_one_that_does_not_fit_are_not_done_again(
    demo_model: tuple[Any, Any], questions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens later, each row is handed out once."""
    answer, calls = Decoder.answer, []

    def fails_once(self: Decoder, inputs: Any) -> Any:
        calls.append(len(inputs["input_ids"]))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no memory")
        return answer(self, inputs)

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

    def limited(self: Decoder, inputs: Any) -> Any:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > rows:
            raise torch.OutOfMemoryError("no memory")
        return answer(self, inputs)

    monkeypatch.setattr(Decoder, "answer", limited)
    return tried


def test_a_static_cache_writes_the_same(
    demo_model: tuple[Any, Any], questions: Any, one_by_one: list[str], monkeypatch: Any
) -> None:
    """As on a GPU, but for the compilation: one cache, kept from batch to batch, all of one size,
    the last one filled up."""
    caches, make = [], Decoder._cache_for

    def watched(self: Decoder, rows: int, length: int) -> Any:
        caches.append(make(self, rows, length))
        return caches[-1]

    monkeypatch.setattr("vlmtune.evaluation.generation.compiling_pays", lambda *_: True)
    monkeypatch.setattr(Decoder, "_cache_for", watched)
    texts, _ = describe(*demo_model, questions, OPTIONS, 3, label="demo")
    assert texts == one_by_one
    assert len(caches) == 3 and len({id(cache) for cache in caches}) == 1
    assert caches[0].layers[0].keys.shape[0] == 3


def _model(**attributes: Any) -> Any:
    plain = {"device": torch.device("cuda"), "is_quantized": False, "_can_compile_fullgraph": True}
    return SimpleNamespace(**(plain | attributes))


@pytest.mark.parametrize(
    ("model", "options", "rows", "pays"),
    [
        (_model(), {"max_new_tokens": 100}, 10_000, True),
        (_model(), {"max_new_tokens": 100}, 100, False),
        (_model(), {}, 10_000, False),
        (_model(), {"max_new_tokens": 100, "disable_compile": True}, 10_000, False),
        (_model(device=torch.device("cpu")), {"max_new_tokens": 100}, 10_000, False),
        (_model(is_quantized=True), {"max_new_tokens": 100}, 10_000, False),
        (_model(_can_compile_fullgraph=False), {"max_new_tokens": 100}, 10_000, False),
    ],
    ids=["much", "little", "unknown", "forbidden", "cpu", "4-bit", "another family"],
)
def test_when_compiling_pays(model: Any, options: dict[str, Any], rows: int, pays: bool) -> None:
    """On a GPU, for a model in bf16 that allows it, and for long enough."""
    assert compiling_pays(model, options, rows) is pays


def test_compiling_looks_below_an_adapter() -> None:
    """PEFT wraps the model."""
    wrapped = SimpleNamespace(get_base_model=lambda: _model(is_quantized=True))
    assert not compiling_pays(wrapped, {"max_new_tokens": 100}, 10_000)


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


def test_little_is_worked_ahead() -> None:
    """Only a few batches of pictures are in memory at a time."""
    started: list[int] = []
    work: Callable[[int], None] = started.append
    results = ahead(work, range(100), threads=2)
    next(results)
    results.close()
    assert len(started) <= 3
