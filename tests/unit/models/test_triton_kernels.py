"""The kernels in Triton, run by its interpreter, which needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = Path(__file__).with_name("interpreted_kernels.py")


def test_kernels_agree_under_the_interpreter() -> None:
    """In a process of their own: a kernel is made for the interpreter when it is imported."""
    pytest.importorskip("triton", reason="Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(INTERPRETED)],
        cwd=INTERPRETED.parents[3],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile_for_a_gpu(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For Ampere and Hopper, at a 7B's sizes in bf16; compiling needs no GPU."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # what is not said is warned about
    pytest.importorskip("triton", reason="Triton is not installed")
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vlmtune.models.triton_kernels import _attend, _quick_gelu

    sizes = {"HEADS": 7, "SIZE": 128, "HEAD_BLOCK": 16, "SIZE_BLOCK": 128}
    sizes |= {"KEY_BLOCK": 64, "ALL_KEYS": 1024, "BLOCK": 2048}
    types = {"visible": "*u8", "scale": "fp32"}
    types |= dict.fromkeys(("query", "key", "value", "output", "x"), "*bf16")
    for kernel in (_attend, _quick_gelu):
        names = kernel.arg_names
        signature = {
            name: "constexpr" if name in sizes else types.get(name, "i32") for name in names
        }
        constants = {name: sizes[name] for name in names if name in sizes}
        source = ASTSource(kernel, signature, constants)
        compiled = compile_kernel(source, target=GPUTarget("cuda", capability, 32))
        assert f".target sm_{capability}" in compiled.asm["ptx"]
        assert compiled.metadata.shared < 96 * 1024
