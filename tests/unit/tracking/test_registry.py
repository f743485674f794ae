"""The registry, on a real MLflow with a database of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlmtune.config.model import ModelConfig
from vlmtune.errors import UserError
from vlmtune.tracking.registry import CHALLENGER, CHAMPION, Registry, VersionFacts, registered_name


def facts(number: int, **changes: Any) -> VersionFacts:
    """What a version is made of."""
    return VersionFacts(
        **{
            "inputs": f"inputs {number}",
            "content": f"content {number}",
            "run_name": f"run-{number}",
            "artifacts": {"adapter": f"id-{number}"},
            "base_revision": "sha256:0",
            "model": ModelConfig(id="demo/model"),
            **changes,
        }
    )


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """An empty one."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield Registry(registered_name("shops/my shop: 2"))
    mlflow.set_tracking_uri(before)


def registered(registry: Registry, *numbers: int) -> None:
    """Register versions and promote each."""
    for number in numbers:
        version = registry.register(facts(number), f"/models/{number}", None)
        registry.promote(version, f"promoted {number}")


def test_names_that_mlflow_takes() -> None:
    """Whatever a catalog is called."""
    assert registered_name("demo/catalog") == "vlmtune-demo-catalog"
    assert registered_name("/data/a: b") == "vlmtune-data-a-b"


def test_an_empty_registry(registry: Registry) -> None:
    """No champion, nothing to go back to."""
    assert registry.champion() is None and registry.versions() == [] and registry.moves() == []
    with pytest.raises(UserError, match="no earlier champion"):
        registry.rollback("why")
    with pytest.raises(UserError, match=r"no version 3 \(there are: none\)"):
        registry.find("3")


def test_a_version_waits_until_it_is_promoted(registry: Registry) -> None:
    """As a challenger; promoted, it is the champion, and says of what it is made."""
    version = registry.register(facts(1), "/models/1", None)
    assert version.number == "1" and version.aliases == [CHALLENGER] and version.published == "no"
    assert registry.champion() is None
    move = registry.promote(version, "it passed")
    champion = registry.champion()
    assert champion and champion.number == "1" and champion.aliases == [CHAMPION]
    assert champion.facts == facts(1)
    assert (move.before, move.after, move.why) == (None, "1", "it passed") and move.by


def test_the_same_content_is_registered_once(registry: Registry) -> None:
    """A rerun makes no second version; other inputs or other content do."""
    first = registry.register(facts(1), "/models/1", None)
    assert registry.register(facts(1), "/models/1", None).number == first.number
    assert registry.register(facts(1, inputs="other"), "/models/1", None).number == "2"
    assert registry.register(facts(1, content="other"), "/models/1", None).number == "3"


def test_rollback_goes_back_one_by_one(registry: Registry) -> None:
    """Not to and fro; and every move is kept."""
    registered(registry, 1, 2, 3)
    assert registry.rollback("bad").after == "2"
    assert registry.rollback("worse").after == "1"
    with pytest.raises(UserError, match="no earlier champion"):
        registry.rollback("nothing left")
    registry.promote(registry.find("v3"), "fixed")
    assert registry.rollback("not at all").after == "1"
    found = [(move.before, move.after, move.why) for move in registry.moves()]
    assert found == [
        (None, "1", "promoted 1"),
        ("1", "2", "promoted 2"),
        ("2", "3", "promoted 3"),
        ("3", "2", "bad"),
        ("2", "1", "worse"),
        ("1", "3", "fixed"),
        ("3", "1", "not at all"),
    ]


def test_runs_whose_models_were_promoted(registry: Registry) -> None:
    """The latest first, each once; a version that only waits is none."""
    registered(registry, 1, 2)
    registry.register(facts(3), "/models/3", None)
    assert registry.promoted_runs() == ["run-2", "run-1"]
    registry.rollback("bad")
    assert registry.promoted_runs() == ["run-1", "run-2"]


def test_promoting_the_champion_changes_nothing(registry: Registry) -> None:
    """And leaves no trace among the moves."""
    registered(registry, 1)
    registry.promote(registry.find("champion"), "again")
    assert len(registry.moves()) == 1


def test_published_or_not(registry: Registry) -> None:
    """It is said of each version by itself."""
    registered(registry, 1, 2)
    registry.mark(registry.find("1"), "yes")
    registry.mark(registry.find("2"), "not wanted")
    assert [version.published for version in registry.versions()] == ["not wanted", "yes"]


def test_versions_by_number_or_alias(registry: Registry) -> None:
    """As people write them."""
    registered(registry, 1, 2)
    assert {registry.find(name).number for name in ("2", "v2", "champion")} == {"2"}
    with pytest.raises(UserError, match="v1, v2"):
        registry.find("v9")


def test_versions_that_others_made_are_left_alone(registry: Registry) -> None:
    """They lack our facts."""
    registered(registry, 1)
    registry._client.create_model_version(registry.name, "/models/foreign")
    assert [version.number for version in registry.versions()] == ["1"]
