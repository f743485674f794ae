"""The registry, on a real MLflow with a database of its own."""

import random
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from vlmtune.config.model import ModelConfig
from vlmtune.errors import UserError
from vlmtune.tracking import moves
from vlmtune.tracking.moves import NotDue
from vlmtune.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    Registry,
    VersionFacts,
    make_database,
    registered_name,
)


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


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh database of MLflow's, to be copied: making one takes seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    make_database(f"sqlite:///{path}")
    return path


@pytest.fixture
def registry(tmp_path: Path, database: Path) -> Iterator[Registry]:
    """An empty one."""
    import mlflow

    before = mlflow.get_tracking_uri()
    shutil.copy(database, tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield Registry(registered_name("shops/my shop: 2"))
    mlflow.set_tracking_uri(before)


def registered(registry: Registry, *numbers: int) -> None:
    """Register versions and promote each."""
    for number in numbers:
        version = registry.register(facts(number), f"/models/{number}", None)
        registry.promote(version, f"promoted {number}")


def test_names_that_mlflow_takes() -> None:
    """A plain name stands as it is; of any other, what can be read."""
    assert registered_name("shop-2.words_a") == "vlmtune-shop-2.words_a"
    assert registered_name("demo/catalog").startswith("vlmtune-demo-catalog-")
    assert registered_name("/data/a: b").startswith("vlmtune-data-a-b-")


def test_no_two_catalogs_share_a_registered_model(registry: Registry) -> None:
    """Whatever they are called, and also where a database takes upper for lower case."""
    names = {"shop/a", "shop-a", "shop--a", "shop:a", "Shop-a", "shop a", "-shop-a", "shop-a-", "-"}
    names |= {"", ".", "..", "é", "e", "商店", "店", "a" * 300, "a" * 301, "shop/a/../b"}
    generator = random.Random(0)
    names |= {
        "".join(generator.choices("aA1-._/: %", k=generator.randint(1, 6))) for _ in range(5000)
    }
    names |= {registered_name(name).removeprefix("vlmtune-") for name in names}  # look like ours
    models = {registered_name(name).lower() for name in names}
    assert len(models) == len(names) > 4000
    assert all(len(model) <= 255 and re.fullmatch(r"[a-z0-9._-]+", model) for model in models)
    for name in ("shop/a", "shop-a", "..", "商店", "a" * 300):
        made = Registry(registered_name(name))
        made.register(facts(1), "/models/1", None)
        assert len(made.versions()) == 1


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


def test_a_version_is_found_where_it_was_stored_last(registry: Registry) -> None:
    """What was lost from the artifact store and made anew has other ids there."""
    first = registry.register(facts(1), "/models/1", None)
    anew = facts(1, artifacts={"adapter": "id-anew"}, run_name="run-anew")
    version = registry.register(anew, "/models/anew", None)
    assert (version.number, version.facts.run_name) == (first.number, "run-1")
    assert registry.find(first.number).facts.artifacts == {"adapter": "id-anew"}


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


def test_a_version_is_due_against_the_champion_it_was_judged_by(registry: Registry) -> None:
    """Else it stays challenger, and it is said why; judged again, it is due."""
    registered(registry, 1, 2)
    late = registry.register(facts(3, beaten="1"), "/models/3", None)
    with pytest.raises(NotDue, match="v3 stays challenger: the champion is v2 now, it was judged"):
        registry.promote_if_due(late, "run-3")
    assert registry.find("v3").aliases == [CHALLENGER] and len(registry.moves()) == 2
    again = registry.register(facts(3, beaten="2", run_name="run-4"), "/models/3", None)
    assert (again.number, again.facts.beaten, again.facts.run_name) == ("3", "2", "run-3")
    assert registry.promote_if_due(again, "run-4").before == "2"
    first = registry.register(facts(4), "/models/4", None)
    assert "it was judged against no champion" in str(registry.objection(first))


def test_what_a_person_took_back_only_a_person_gives_back(registry: Registry) -> None:
    """By rollback or by promoting another; a run that made the same again does not."""
    registered(registry, 1)
    version = registry.register(facts(2, beaten="1"), "/models/2", None)
    registry.promote_if_due(version, "run-2")
    registry.rollback("customers complain")
    again = registry.register(facts(2, beaten="1"), "/models/2", None)
    with pytest.raises(NotDue, match=r"v2 stays challenger: .*customers complain.*promote v2"):
        registry.promote_if_due(again, "run-2 again")
    registry.promote(again, "they do not any more")
    registry.promote(registry.find("v1"), "they do")
    assert registry.objection(again)
    better = registry.register(facts(3, beaten="1"), "/models/3", None)
    registry.promote_if_due(better, "run-3")
    assert registry.objection(registry.find("v2")) and not registry.objection(better)


def test_moves_are_in_the_order_they_were_made(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the clock goes backwards, and there are more than nine."""

    class Clock(datetime):
        years = iter(range(2040, 2000, -1))

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(next(cls.years), 1, 1, tzinfo=tz)

    monkeypatch.setattr(moves, "datetime", Clock)
    registered(registry, *range(1, 13))
    assert [move.after for move in registry.moves()] == [str(n) for n in range(1, 13)]
    assert [move.number for move in registry.moves()] == list(range(1, 13))
    assert registry.rollback("bad").after == "11"


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
