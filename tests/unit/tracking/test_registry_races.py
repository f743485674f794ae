"""The registry under races and kills: real processes on a real MLflow."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.tracking.racers import act, kill_after, race
from tests.unit.tracking.test_registry import database as database
from tests.unit.tracking.test_registry import facts
from tests.unit.tracking.test_registry import registry as registry
from vlmtune.tracking import moves
from vlmtune.tracking.moves import INTENT
from vlmtune.tracking.registry import CHALLENGER, Registry

ROUNDS, RACERS = 8, 3


@pytest.fixture
def uri(registry: Registry) -> str:
    """A local database."""
    import mlflow

    return str(mlflow.get_tracking_uri())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An MLflow server, as several machines share it."""
    import mlflow

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address, before = f"http://127.0.0.1:{port}", mlflow.get_tracking_uri()
    database = f"sqlite:///{tmp_path}/server.db"
    command = ["-m", "mlflow", "server", "--backend-store-uri", database, "--port", port]
    process = subprocess.Popen([sys.executable, *command, "--workers", "1"], cwd=tmp_path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{address}/health"):
            break
        time.sleep(0.2)
    mlflow.set_tracking_uri(address)
    yield address
    mlflow.set_tracking_uri(before)
    process.terminate()
    process.wait()


def check(registry: Registry) -> None:
    """What holds whatever was raced or killed: moves are numbered, each is from the champion that
    the one before it made, and the last one made the champion of now."""
    made, champion = registry.moves(), registry.champion()
    assert [move.number for move in made] == list(range(1, len(made) + 1))
    afters = [None, *(move.after for move in made)]
    assert [move.before for move in made] == afters[:-1]
    assert (champion.number if champion else None) == afters[-1]


def with_champion(name: str, waiting: int) -> Registry:
    """A registered model whose champion is v1, and versions that were judged against it."""
    registry = Registry(name)
    registry.promote_if_due(registry.register(facts(1), "s3://models/1", None), "first")
    for number in range(2, waiting + 2):
        registry.register(facts(number, beaten="1"), f"s3://models/{number}", None)
    return registry


def first_registrations(uri: str, rounds: int, folder: Path | None = None) -> None:
    """Of a model that is not there yet: each is a version."""
    names = [f"first-{number}" for number in range(rounds)]
    given = race(uri, [(name, [("register", n) for n in range(RACERS)]) for name in names], folder)
    assert [sorted(numbers) for numbers in given] == [["1", "2", "3"]] * rounds
    assert all(len(Registry(name).versions()) == RACERS for name in names)
    print(f"first registrations: {rounds} races of {RACERS}, no version lost")


def equal_content(uri: str, rounds: int, folder: Path | None = None) -> None:
    """Registered by all at once: one version, for all the same."""
    names = [f"equal-{number}" for number in range(rounds)]
    given = race(uri, [(name, [("register", 1)] * RACERS) for name in names], folder)
    for name, numbers in zip(names, given, strict=True):
        (version,) = Registry(name).versions()
        assert numbers == [version.number] * RACERS and version.aliases == [CHALLENGER]
    print(f"equal content: {rounds} races of {RACERS}, one version each")


def promotions(uri: str, rounds: int, folder: Path | None = None) -> None:
    """All were judged against v1: one becomes the champion, the others stay challengers."""
    models = [with_champion(f"runs-{number}", RACERS) for number in range(rounds)]
    actions = [("by run", f"v{number}") for number in range(2, RACERS + 2)]
    given = race(uri, [(model.name, actions) for model in models], folder)
    for model, numbers in zip(models, given, strict=True):
        (winner,) = (number for number in numbers if number != "not due")
        champion = model.champion()
        assert champion and champion.number == winner and len(model.moves()) == 2
        check(model)
        loser = next(each for each in model.versions() if each.number not in ("1", winner))
        assert f"the champion is v{winner} now, it was judged against v1" in str(
            model.objection(loser)
        )
    print(f"promotions: {rounds} races of {RACERS}, one winner each, all recorded")


def by_hand_during_a_run(uri: str, rounds: int, folder: Path | None = None) -> None:
    """Before or after the run's: what the person wanted is the champion."""
    models = [with_champion(f"hand-{number}", 2) for number in range(rounds)]
    actions = [("by hand", "v2"), ("by run", "v3")]
    given = race(uri, [(model.name, actions) for model in models], folder)
    for model, (by_hand, by_run) in zip(models, given, strict=True):
        champion = model.champion()
        assert champion and champion.number == by_hand == "2"
        assert by_run in ("3", "not due") and len(model.moves()) == (3 if by_run == "3" else 2)
        check(model)
    runs = sum(by_run == "3" for _, by_run in given)
    print(f"by hand during a run: {rounds} races, {runs} times the run was first")


RACES = (first_registrations, equal_content, promotions, by_hand_during_a_run)


def test_a_race_of_each_kind(uri: str) -> None:
    """On one machine: see each."""
    for run_race in RACES:
        run_race(uri, 1)


@pytest.mark.slow
def test_races_on_one_machine(uri: str) -> None:
    """Many of each kind."""
    for run_race in RACES:
        run_race(uri, ROUNDS)


@pytest.mark.slow
def test_races_of_machines_that_share_a_server(server: str, tmp_path: Path) -> None:
    """They share no lock: whoever sees the other's announcement withdraws its own."""
    for run_race in RACES:
        run_race(server, ROUNDS // 2, tmp_path / "machines")


SLOW = [pytest.param(what, marks=pytest.mark.slow) for what in ("first", "by hand", "rollback")]


@pytest.mark.parametrize("what", ["by run", *SLOW])
def test_a_move_that_is_killed(uri: str, what: str) -> None:
    """Before or after each of its writes: it was made or it was not, and the record says which;
    the same again ends as if nothing had happened, and so does the next move."""
    killed = made = 0
    while True:
        registry = Registry(f"{what.replace(' ', '-')}-{killed}")
        registry.register(facts(1), "s3://models/1", None)
        action = ("by run", "v1") if what == "first" else (what, "v2")
        if what != "first":
            registry = with_champion(registry.name, 1)
        if what == "rollback":
            registry.promote_if_due(registry.find("v2"), "better")
            action = ("rollback",)
        before = len(registry.moves())
        alive = not kill_after(uri, registry.name, killed, action)
        check(registry)
        was_made = len(registry.moves()) - before
        if not was_made:
            act(registry, action)
        elif what != "rollback":
            assert act(registry, action) in ("1", "2")
        check(registry)
        assert len(registry.moves()) == before + 1
        registry.promote(registry.register(facts(9), "s3://models/9", None), "next")
        check(registry)
        assert len(registry.moves()) == before + 2
        assert not [key for key in registry._moves.model().tags if key.startswith(INTENT)]
        if what != "first":
            assert registry.rollback("back").after == ("1" if what == "rollback" else "2")
            check(registry)
        if alive:
            break
        killed, made = killed + 1, made + was_made
    assert killed >= 4 and 0 < made < killed
    print(f"{what}: killed at {killed} points, made by then at {made}")


def of_another_machine(name: str, folder: Path) -> Registry:
    """The same registered model, without a common lock."""
    other = Registry(name)
    other._moves._lock_file, other._moves._place = folder / "other.lock", "other"
    return other


def test_a_machine_that_sleeps_before_it_sets_the_alias(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So long that another takes its intent for left behind and moves: what the two have agreed
    on is restored, and the late one stays challenger."""
    registry = with_champion("asleep", 2)
    other = of_another_machine(registry.name, tmp_path)
    monkeypatch.setattr(moves, "PATIENCE", 0.1)
    set_alias = registry._client.set_registered_model_alias

    def sleep(*arguments: str) -> None:
        monkeypatch.setattr(registry._client, "set_registered_model_alias", set_alias)
        other.promote_if_due(other.find("v3"), "not asleep")
        set_alias(*arguments)

    monkeypatch.setattr(registry._client, "set_registered_model_alias", sleep)
    assert act(registry, ("by run", "v2")) == "not due"
    check(registry)
    assert [move.after for move in registry.moves()] == ["1", "3"]


def test_what_a_killed_machine_left_is_settled_by_another(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while, since it may only be slow; made or not, as the alias says."""
    monkeypatch.setattr(moves, "PATIENCE", 0.5)
    for writes, made in ((1, ["1", "3"]), (2, ["1", "2", "3"])):
        registry = with_champion(f"left-{writes}", 2)
        assert kill_after(uri, registry.name, writes, ("by hand", "v2"))
        start = time.monotonic()
        other = of_another_machine(registry.name, tmp_path)
        other.promote(other.find("v3"), "by hand")
        assert time.monotonic() - start > 0.5
        check(registry)
        assert [move.after for move in registry.moves()] == made


def test_a_registration_that_is_killed(uri: str) -> None:
    """At each of its writes; the same again is the version, and there is one."""
    killed = 0
    while True:
        name = f"registration-{killed}"
        alive = not kill_after(uri, name, killed, ("register", 1))
        registry = Registry(name)
        check(registry)
        assert act(registry, ("register", 1)) == "1"
        (version,) = registry.versions()
        assert version.aliases == [CHALLENGER]
        if alive:
            break
        killed += 1
    assert killed == 3
    print(f"registration: killed at {killed} points")
