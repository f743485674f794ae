"""A kernel is used only if it gives what it stands in for."""

import pytest
import torch

from vlmtune.models.kernels import tried

LOGGER = "vlmtune.models.kernels"


def double(x: torch.Tensor) -> torch.Tensor:
    """What the kernels below stand in for."""
    return x * 2


def test_a_kernel_that_agrees_is_used() -> None:
    """From the second call on; one that writes into its input harms no trial."""
    calls = []

    def in_place(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return x.mul_(2)

    chosen = tried(in_place, double)
    ones = torch.ones(3)
    assert torch.equal(chosen(ones), 2 * torch.ones(3))
    assert torch.equal(ones, torch.ones(3)) and len(calls) == 1
    assert torch.equal(chosen(ones), 2 * torch.ones(3))
    assert calls[1] is ones


def test_a_kernel_that_differs_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """Nor one whose numbers are no numbers; the log says why."""
    caplog.set_level("INFO", LOGGER)
    for wrong in (lambda x: x * 2.1, lambda x: x * float("nan")):
        chosen = tried(wrong, double)
        assert [chosen(torch.ones(3)).tolist() for _ in range(3)] == [[2.0] * 3] * 3
    assert "differs by 0.05" in caplog.text and "differs by nan" in caplog.text


def test_a_kernel_that_fails_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """But want of memory is the caller's business."""
    caplog.set_level("INFO", LOGGER)

    def fails(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such instruction")

    def runs_out(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    chosen = tried(fails, double)
    assert [chosen(torch.ones(1)).item() for _ in range(2)] == [2, 2]
    assert "no such instruction" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        tried(runs_out, double)(torch.ones(1))


def test_several_results_are_all_compared() -> None:
    """The second differs."""
    chosen = tried(lambda x: (x, x), lambda x: (x, 2 * x))
    assert [part.item() for part in [*chosen(torch.ones(1)), *chosen(torch.ones(1))]] == [1, 2] * 2
