"""The loopback Hub that pushes go to."""

from collections.abc import Iterator

import pytest

from tests.hub_server import HubServer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub on this machine, which takes the token in HF_TOKEN."""
    with HubServer() as server:
        server.use(monkeypatch, token=server.token)
        yield server
