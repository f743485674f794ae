"""Moves of the champion: one after the other, each from the champion it was meant to replace.

MLflow sets an alias whatever it was before. So a move is made in this order: its intent is
written as a tag, looked at beside those of others, the alias is set, looked at again, and the
intent becomes a record with a running number. Processes on one machine take turns by a file lock,
which the system frees when one is killed. Machines that share a server see each other's intents:
whoever sees another's withdraws its own and tries again. What a killed process leaves is settled
by the next one: the alias tells whether the move was made.
"""

import getpass
import platform
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from vlmtune.errors import UserError
from vlmtune.revision import hash_text

CHAMPION, CHALLENGER = "champion", "challenger"
INTENT, MOVE = "vlmtune.moving.", "vlmtune.move."
PATIENCE = 30.0  # seconds after which another machine's intent is taken for left behind
SQLITE = "sqlite:///"


class NotDue(UserError):
    """A version does not become the champion: that is another by now, or a person decides."""


class Move(BaseModel):
    """One change of the champion: who made it, when, from which version to which, and why.

    Attributes:
        number: running, from 1. Moves are ordered by it, not by a clock.
        by_hand: a person asked for it; else a run whose model passed the gate.
        place: the lock under which it was made.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    at: str
    by: str
    before: str | None
    after: str
    why: str
    by_hand: bool
    place: str


class RegistryState:
    """What MLflow knows of a registered model at one moment; all of None while there is none."""

    def __init__(self, model: Any) -> None:
        aliases = model.aliases if model else {}
        self.aliases = {alias: str(number) for alias, number in aliases.items()}
        self.champion = self.aliases.get(CHAMPION)
        tags = model.tags if model else {}
        self.intents = _moves_in(tags, INTENT)
        self._records = _moves_in(tags, MOVE)

    def knows(self, token: str) -> bool:
        """Whether a move is intended or recorded."""
        return token in self.intents or token in self._records

    @property
    def moves(self) -> list[Move]:
        """Every change of the champion, oldest first; also one that was made by a process which
        was killed before it could record it."""
        made = {token: move for token, move in self.intents.items() if self.is_made(move)}
        return sorted((made | self._records).values(), key=lambda move: move.number)

    def is_made(self, intent: Move) -> bool:
        """Whether an intended move has taken place."""
        return self.champion == intent.after

    @property
    def taken_back(self) -> dict[str, Move]:
        """Version -> the move by which a person took the champion away from it, unless a person
        has given it back."""
        taken: dict[str, Move] = {}
        for move in self.moves:
            if move.by_hand:
                taken.pop(move.after, None)
                if move.before:
                    taken[move.before] = move
        return taken


class ChampionMoves:
    """Moves the champion of one registered model.

    Args:
        client: of MLflow.
        name: of the registered model.
    """

    def __init__(self, client: Any, name: str) -> None:
        import mlflow

        self._client, self._name = client, name
        self._lock_file = _lock_file(mlflow.get_registry_uri())
        self._place = f"{platform.node()}:{self._lock_file}"

    def model(self) -> Any:
        """MLflow's record of the registered model; None while there is none."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def state(self) -> RegistryState:
        """As of now."""
        return RegistryState(self.model())

    def set_alias(self, alias: str, number: str) -> None:
        """Let an alias stand for a version. MLflow looks whether the alias is there and makes it
        if not, so that of two machines that do so at once, one fails; the alias is there then."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_registered_model_alias(self._name, alias, number)
        except MlflowException:
            self._client.set_registered_model_alias(self._name, alias, number)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process on this machine changes the registry."""
        with FileLock(self._lock_file):
            yield

    def move(
        self, number: str, why: str, by_hand: bool, objection: Callable[[RegistryState], str | None]
    ) -> Move:
        """Make a version the champion.

        Args:
            objection: why it must not be, in the state in which it would be.

        Returns:
            The move, which is not kept if the version is the champion already.

        Raises:
            NotDue: there is an objection, or another machine was faster.
        """
        with self.alone():
            while True:
                state = self._settled()
                if problem := objection(state):
                    raise NotDue(problem)
                move = Move(
                    number=max((move.number for move in state.moves), default=0) + 1,
                    at=datetime.now(UTC).isoformat(timespec="seconds"),
                    by=user(),
                    before=state.champion,
                    after=number,
                    why=why,
                    by_hand=by_hand,
                    place=self._place,
                )
                if state.champion == number:
                    return move
                token = secrets.token_hex(4)
                if self._announce(token, move):
                    self._make(token, move)
                    return move
                time.sleep(random.uniform(0, 0.5))

    def _settled(self) -> RegistryState:
        """The state once no move is under way: those of this machine were left behind, since it
        holds the lock; those of others too, if they stay."""
        first_seen: dict[str, float] = {}
        while (state := self.state()).intents:
            for token, move in state.intents.items():
                waited = time.monotonic() - first_seen.setdefault(token, time.monotonic())
                if move.place == self._place or waited > PATIENCE:
                    self._settle(token, move, state)
            time.sleep(0.05)
        return state

    def _announce(self, token: str, move: Move) -> bool:
        """Write the intent; withdraw it if another machine has one, or has moved meanwhile."""
        self._client.set_registered_model_tag(self._name, INTENT + token, move.model_dump_json())
        state = self.state()
        is_next = move.number not in [made.number for made in state.moves]
        if is_next and set(state.intents) == {token} and state.champion == move.before:
            return True
        self._client.delete_registered_model_tag(self._name, INTENT + token)
        return False

    def _make(self, token: str, move: Move) -> None:
        """Set the alias, and record that if it holds.

        Raises:
            NotDue: another machine took the intent for left behind and has moved meanwhile.
        """
        self.set_alias(CHAMPION, move.after)
        state = self.state()
        if state.is_made(move) and state.knows(token):
            self._settle(token, move, state)
            return
        if state.is_made(move):  # set over a champion that others had agreed on
            self._restore(state)
        if token in state.intents:
            self._client.delete_registered_model_tag(self._name, INTENT + token)
        raise NotDue(
            f"v{move.after} stays challenger: another machine moved the champion of {self._name} "
            "at the same time.",
            "See `run.py versions`.",
        )

    def _restore(self, state: RegistryState) -> None:
        """Give the alias back to the version of the last recorded move."""
        if state.moves:
            self.set_alias(CHAMPION, state.moves[-1].after)
        else:
            self._client.delete_registered_model_alias(self._name, CHAMPION)

    def _settle(self, token: str, move: Move, state: RegistryState) -> None:
        """Record a move that has taken place, and drop its intent."""
        if state.is_made(move):
            key = f"{MOVE}{move.number:06d}.{token}"
            self._client.set_registered_model_tag(self._name, key, move.model_dump_json())
            if state.aliases.get(CHALLENGER) == move.after:
                self._client.delete_registered_model_alias(self._name, CHALLENGER)
        self._client.delete_registered_model_tag(self._name, INTENT + token)


def former_champion(moves: list[Move], number: str) -> str | None:
    """The champion that a version took the place of. A rollback is undone by the next one only
    as far as the moves before it: what was rolled back from does not come again."""
    trail: list[str] = []
    for move in moves:
        if move.after in trail:  # back to an earlier one: what came after it is forgotten
            trail = trail[: trail.index(move.after) + 1]
        else:
            trail.append(move.after)
    at = trail.index(number) if number in trail else 0
    return trail[at - 1] if at else None


def user() -> str:
    """Who runs this process, as the system knows it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a user entry
        return "unknown"


def _moves_in(tags: dict[str, str], prefix: str) -> dict[str, Move]:
    """Token, the last part of a tag's key, -> move."""
    return {
        key.rpartition(".")[2]: Move.model_validate_json(text)
        for key, text in tags.items()
        if key.startswith(prefix)
    }


def _lock_file(uri: str) -> Path:
    """Beside a local database, so that all who use it share it; for a server, each user's own."""
    if uri.startswith(SQLITE):
        return Path(uri.removeprefix(SQLITE) + ".lock")
    name = f"vlmtune-{user()}-{hash_text(uri)[:16]}.lock"
    return Path(tempfile.gettempdir()) / name
