"""What becomes of a version after a push, on a real MLflow registry."""

from pathlib import Path

import pytest

from steps import versions
from steps.versions import settle
from tests.unit.tracking.test_registry import database as database
from tests.unit.tracking.test_registry import facts, registered
from tests.unit.tracking.test_registry import registry as registry
from vlmtune.publishing.publication import Publication
from vlmtune.tracking.registry import CHALLENGER, Registry


@pytest.fixture(autouse=True)
def run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline run that the step belongs to."""
    monkeypatch.setattr(versions, "run_name", lambda: "finetune-1")


def test_a_failed_push_leaves_the_champion(registry: Registry, tmp_path: Path) -> None:
    """The new version waits, unpublished; published later, it is the champion."""
    registered(registry, 1)
    version = registry.register(facts(2, beaten="1"), "/models/2", None)
    settle(registry, version, Publication(status="unpublished", reason="503", cards={}))
    champion, waiting = registry.champion(), registry.find("v2")
    assert champion and champion.number == "1"
    assert waiting.published == "no" and waiting.aliases == [CHALLENGER]
    settle(registry, waiting, Publication(status="pushed", cards={}))
    champion = registry.champion()
    assert champion and (champion.number, champion.published) == ("2", "yes")
    assert registry.moves()[-1].why.startswith("finetune-1: ")


def test_a_version_that_is_wanted_nowhere(registry: Registry, tmp_path: Path) -> None:
    """Without a repo it is the champion at once; one that was pushed before stays so."""
    version = registry.register(facts(1), "/models/1", None)
    settle(registry, version, Publication(status="ready", cards={}))
    champion = registry.champion()
    assert champion and champion.published == "not wanted"
    settle(registry, champion, Publication(status="pushed", cards={}))
    settle(registry, registry.find("v1"), Publication(status="ready", cards={}))
    assert registry.find("v1").published == "yes"


def test_a_push_that_came_too_late(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """Another has become the champion while it was pushed: published, it stays challenger, and
    the run says so."""
    registered(registry, 1)
    version = registry.register(facts(2, beaten="1"), "/models/2", None)
    registered(registry, 3)
    settle(registry, version, Publication(status="pushed", cards={}))
    champion, late = registry.champion(), registry.find("v2")
    assert champion and champion.number == "3"
    assert late.published == "yes" and late.number == "2"
    assert "v2 stays challenger: the champion is v3 now" in caplog.text
