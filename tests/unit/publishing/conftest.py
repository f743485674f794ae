"""The loopback Hub that pushes go to, and a clock that nobody waits for."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
from safetensors.numpy import save_file

from tests.hub_server import HubServer
from vlmtune.publishing import patience

CARD = "---\nlicense: apache-2.0\n---\n# Words for mugs\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub on this machine, which takes the token in HF_TOKEN."""
    with HubServer() as server:
        server.use(monkeypatch, token=server.token)
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Our pauses between attempts, in seconds, which are noted and not made; the client's own
    are not made either."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    noted: list[float] = []
    monkeypatch.setattr(patience, "_pause", noted.append)
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))
    return noted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights, a card and a file in a folder of its own."""
    folder = tmp_path / "bundle"
    (folder / "sub").mkdir(parents=True)
    save_file({"lora_A": numpy.arange(600.0)}, folder / "adapter_model.safetensors")
    (folder / "README.md").write_text(CARD)
    (folder / "sub/vocab.json").write_text('{"Müg": 1}', encoding="utf-8")
    return folder
