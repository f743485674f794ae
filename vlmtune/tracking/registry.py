"""The model registry: which versions there are, which one is the champion, and since when.

MLflow's registry is the truth. A version is registered once its model has passed the gate; the
alias `champion` names the one that is live, `challenger` one that waits to be published. Every
move of the champion is kept as a tag of the registered model, so that it can be taken back.
"""

import getpass
import json
import re
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from vlmtune.config.model import ModelConfig
from vlmtune.errors import UserError

CHAMPION, CHALLENGER = "champion", "challenger"
FACTS, PUBLISHED, MOVE = "vlmtune.facts", "vlmtune.published", "vlmtune.move."
LATEST = "latest"  # in place of a champion: whichever it is when the run comes to it
Published = Literal["yes", "no", "not wanted"]


class VersionFacts(BaseModel):
    """What a version is made of.

    Attributes:
        inputs: fingerprint of all that its training was made from.
        content: digest over the files of adapter and merged model.
        run_name: the pipeline run that made it.
        artifacts: name -> id in ZenML of what belongs to it.
        base_revision: of its base model.
        model: how its base model is loaded.
        beaten: version of the champion that it was judged against; None if there was none.
        verdict: of the gate, in words.
    """

    model_config = ConfigDict(frozen=True)

    inputs: str
    content: str
    run_name: str
    artifacts: dict[str, str]
    base_revision: str
    model: ModelConfig
    beaten: str | None = None
    verdict: str = ""


class ChampionRef(BaseModel):
    """The version that a new model has to beat, as a step's parameter: only what cannot change,
    so that an unchanged run comes from the cache.

    Attributes:
        number: of the version.
        adapter, quantized_model: ids of the artifacts it is loaded from.
        base_revision, model: of its base model, and how that is loaded.
    """

    model_config = ConfigDict(frozen=True)

    number: str
    adapter: str
    quantized_model: str
    base_revision: str
    model: ModelConfig


class Version(BaseModel):
    """A version in the registry.

    Attributes:
        name, number: of the registered model, and of the version in it, as in "3".
        published: whether it is on the Hub; `not wanted` without a `hub.repo_id`.
        aliases: such as champion.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    number: str
    facts: VersionFacts
    published: Published
    aliases: list[str]

    @classmethod
    def read(cls, entry: Any, aliases: dict[str, str]) -> Self | None:
        """From MLflow's record; None if vlmtune did not write it.

        Args:
            aliases: the number of the version that each stands for.
        """
        if FACTS not in entry.tags:
            return None
        number = str(entry.version)
        return cls(
            name=entry.name,
            number=number,
            facts=VersionFacts.model_validate_json(entry.tags[FACTS]),
            published=entry.tags.get(PUBLISHED, "no"),
            aliases=[alias for alias, of in aliases.items() if str(of) == number],
        )

    def as_rival(self) -> ChampionRef:
        """What a new model is compared with."""
        return ChampionRef(
            number=self.number,
            adapter=self.facts.artifacts["adapter"],
            quantized_model=self.facts.artifacts["quantized_model"],
            base_revision=self.facts.base_revision,
            model=self.facts.model,
        )


class Move(BaseModel):
    """One change of the champion: who made it, when, from which version to which, and why."""

    model_config = ConfigDict(frozen=True)

    at: str
    by: str
    before: str | None
    after: str
    why: str


def registered_name(catalog_name: str) -> str:
    """A name that MLflow takes: it refuses slashes and colons."""
    return "vlmtune-" + re.sub(r"[^\w.-]+", "-", catalog_name).strip("-")


class Registry:
    """The versions of one registered model.

    Args:
        name: see `registered_name`. MLflow's tracking address must be set already.
    """

    def __init__(self, name: str) -> None:
        from mlflow import MlflowClient

        self.name = name
        self._client = MlflowClient()

    def versions(self) -> list[Version]:
        """All versions, newest first."""
        model = self._model()
        if model is None:
            return []
        entries = self._client.search_model_versions(f"name = '{self.name}'")
        # The search leaves aliases out; the model has them.
        found = [version for entry in entries if (version := Version.read(entry, model.aliases))]
        return sorted(found, key=lambda version: -int(version.number))

    def champion(self) -> Version | None:
        """The version that is live."""
        return next((each for each in self.versions() if CHAMPION in each.aliases), None)

    def rival(self, inputs: str) -> ChampionRef | None:
        """What a run with these inputs has to beat: the champion; and if the champion was made
        from the very same inputs, what that one had to beat, so that a rerun is no other run."""
        champion = self.champion()
        if champion and champion.facts.inputs == inputs:
            beaten = champion.facts.beaten
            champion = self.find(beaten) if beaten else None
        return champion.as_rival() if champion else None

    def find(self, number: str) -> Version:
        """A version by its number, as `3` or `v3`, or by its alias.

        Raises:
            UserError: there is no such version.
        """
        known = self.versions()
        wanted = number.removeprefix("v")
        for version in known:
            if wanted == version.number or number in version.aliases:
                return version
        numbers = ", ".join(f"v{version.number}" for version in reversed(known)) or "none"
        raise UserError(
            f"{self.name} has no version {number} (there are: {numbers}).",
            "See `run.py versions`.",
        )

    def register(self, facts: VersionFacts, source: str, run_id: str | None) -> Version:
        """Make a version; one of the same content and inputs is taken again.

        Args:
            source: where its adapter is stored.
            run_id: of the MLflow run that made it.
        """
        for version in self.versions():
            same = version.facts.content == facts.content and version.facts.inputs == facts.inputs
            if same:
                return version
        if self._model() is None:
            self._client.create_registered_model(self.name, tags={"made_by": "vlmtune"})
        tags = {FACTS: facts.model_dump_json(), PUBLISHED: "no"}
        made = self._client.create_model_version(self.name, source, run_id=run_id, tags=tags)
        self._client.set_registered_model_alias(self.name, CHALLENGER, str(made.version))
        return self.find(str(made.version))

    def mark(self, version: Version, published: Published) -> None:
        """Note whether a version is on the Hub."""
        self._client.set_model_version_tag(self.name, version.number, PUBLISHED, published)

    def promote(self, version: Version, why: str) -> Move:
        """Make a version the champion.

        Returns:
            The move, which is kept.
        """
        champion = self.champion()
        move = Move(
            at=datetime.now(UTC).isoformat(timespec="microseconds"),
            by=_user(),
            before=champion.number if champion else None,
            after=version.number,
            why=why,
        )
        if champion and champion.number == version.number:
            return move
        self._client.set_registered_model_alias(self.name, CHAMPION, version.number)
        if CHALLENGER in self.find(version.number).aliases:
            self._client.delete_registered_model_alias(self.name, CHALLENGER)
        key = MOVE + re.sub(r"[^\d]", "", move.at)
        self._client.set_registered_model_tag(self.name, key, move.model_dump_json())
        return move

    def rollback(self, why: str) -> Move:
        """Make the champion before the present one the champion again.

        Raises:
            UserError: there was none before.
        """
        champion = self.champion()
        former = _before(self.moves(), champion.number) if champion else None
        if champion is None or former is None:
            raise UserError(
                f"{self.name} has no earlier champion to go back to.",
                "Name a version: run.py promote VERSION.",
            )
        return self.promote(self.find(former), why)

    def moves(self) -> list[Move]:
        """Every change of the champion, oldest first."""
        model = self._model()
        tags = model.tags if model else {}
        keys = sorted(key for key in tags if key.startswith(MOVE))
        return [Move.model_validate(json.loads(tags[key])) for key in keys]

    def promoted_runs(self) -> list[str]:
        """Names of the runs whose models became champion, the latest first."""
        runs = {version.number: version.facts.run_name for version in self.versions()}
        numbers = dict.fromkeys(move.after for move in reversed(self.moves()))
        return [runs[number] for number in numbers if number in runs]

    def _model(self) -> Any:
        """MLflow's record of the registered model; None while there is none."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def _before(moves: list[Move], number: str) -> str | None:
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


def _user() -> str:
    """Who runs this process, as the system knows it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a user entry
        return "unknown"
