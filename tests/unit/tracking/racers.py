"""What processes of their own do to a registry, at once or until they are killed.

They are forked from a server that has MLflow imported: a tenth of a second each.
"""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.unit.tracking.test_registry import facts
from vlmtune.tracking.moves import NotDue
from vlmtune.tracking.registry import Registry

WRITES = (
    *("create_registered_model", "create_model_version", "delete_model_version"),
    *("set_registered_model_alias", "delete_registered_model_alias"),
    *("set_registered_model_tag", "delete_registered_model_tag", "set_model_version_tag"),
)
Action = tuple[Any, ...]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["mlflow", "mlflow.store.model_registry.sqlalchemy_store"])


def act(registry: Registry, action: Action) -> str:
    """Do one thing; returns the number of the version it was done with, or `not due`."""
    what, *given = action
    if what == "register":
        return registry.register(facts(given[0]), f"s3://models/{given[0]}", None).number
    if what == "rollback":
        return registry.rollback("bad").after
    promote = registry.promote if what == "by hand" else registry.promote_if_due
    try:
        return promote(registry.find(given[0]), what).after
    except NotDue:
        return "not due"


def race(uri: str, rounds: list[tuple[str, list[Action]]], folder: Path | None = None) -> Any:
    """Rounds of actions on a registered model, each by a process of its own, all at once.

    Args:
        folder: of the temporary folders, if each process is to have one, as on a machine of its
            own; what lies there is not shared then.

    Returns:
        What each action gave, by round.
    """
    number = len(rounds[0][1])
    barrier, answers = PROCESSES.Barrier(number, timeout=120), PROCESSES.Queue()
    processes = []
    for racer in range(number):
        mine = [(name, actions[racer]) for name, actions in rounds]
        own = str(folder / f"machine-{racer}") if folder else None
        arguments = (uri, mine, barrier, answers, racer, own)
        processes.append(PROCESSES.Process(target=_run, args=arguments))
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    return [list(of_round) for of_round in zip(*(found[r] for r in range(number)), strict=True)]


def kill_after(uri: str, name: str, writes: int, action: Action) -> bool:
    """Do something in a process that kills itself after so many writes; returns whether it did."""
    process: BaseProcess = PROCESSES.Process(target=_die, args=(uri, name, writes, action))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def _run(
    uri: str,
    mine: list[tuple[str, Action]],
    barrier: Any,
    answers: Any,
    racer: int,
    own: str | None,
) -> None:
    import mlflow

    if own:
        Path(own).mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = own
    mlflow.set_tracking_uri(uri)
    given = []
    for name, action in mine:
        registry = Registry(name)
        registry.moves()  # connected before the start
        barrier.wait()
        try:
            given.append(act(registry, action))
        except Exception as error:
            given.append(f"{type(error).__name__}: {error}")
    answers.put((racer, given))


def _die(uri: str, name: str, writes: int, action: Action) -> None:
    import mlflow

    mlflow.set_tracking_uri(uri)
    left = [writes]

    def dying(method: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **options: Any) -> Any:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return method(*args, **options)

        return write

    for method in WRITES:
        setattr(mlflow.MlflowClient, method, dying(getattr(mlflow.MlflowClient, method)))
    act(Registry(name), action)
