"""The model registry: which versions there are, which one is the champion, and since when.

MLflow's registry is the truth. A version is registered once its model has passed the gate; the
alias `champion` names the one that is live, `challenger` one that waits to be published. Every
move of the champion is kept, so that it can be taken back: see moves.py.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from vlmtune.config.model import ModelConfig
from vlmtune.errors import UserError
from vlmtune.revision import hash_text
from vlmtune.tracking.moves import (
    CHALLENGER,
    CHAMPION,
    SQLITE,
    ChampionMoves,
    Move,
    RegistryState,
    former_champion,
)

FACTS, PUBLISHED = "vlmtune.facts", "vlmtune.published"
NAME_LENGTH = 150  # MLflow and ZenML take up to 255
DIGEST = re.compile(r"(^|-)[0-9a-f]{12}$")  # what the name of a catalog that is not plain ends in
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


def registered_name(catalog_name: str) -> str:
    """The registered model of a catalog: each has its own.

    MLflow refuses slashes and colons, and some databases take `Shop` and `shop` for one. A name
    of lower-case letters, digits, dots, underscores and single dashes stands as it is; any other
    is told from those that look like it by a digest.
    """
    is_plain = re.fullmatch(r"[a-z0-9._]+(-[a-z0-9._]+)*", catalog_name)
    if is_plain and len(catalog_name) <= NAME_LENGTH and not DIGEST.search(catalog_name):
        return f"vlmtune-{catalog_name}"
    readable = re.sub(r"[^a-z0-9._]+", "-", catalog_name.lower())[:NAME_LENGTH].strip("-")
    digest = hash_text(catalog_name)[:12]
    return f"vlmtune-{readable}-{digest}" if readable else f"vlmtune-{digest}"


def make_database(uri: str) -> None:
    """Make MLflow's local database, unless it is there. Two processes must not do it at once."""
    if not uri.startswith(SQLITE) or _is_whole(Path(uri.removeprefix(SQLITE))):
        return
    from mlflow import MlflowClient  # takes seconds

    client = MlflowClient(uri, uri)
    client.search_experiments(max_results=1)
    client.search_registered_models(max_results=1)


def _is_whole(database: Path) -> bool:
    """Whether a database has been brought to a version: that is done last."""
    if not database.exists():
        return False
    with closing(sqlite3.connect(database)) as connection:
        try:
            return (
                connection.execute("SELECT version_num FROM alembic_version").fetchone() is not None
            )
        except sqlite3.OperationalError:  # there is no such table yet
            return False


class Registry:
    """The versions of one registered model.

    Args:
        name: see `registered_name`. MLflow's tracking address must be set already.
    """

    def __init__(self, name: str) -> None:
        from mlflow import MlflowClient

        self.name = name
        self._client = MlflowClient()
        self._moves = ChampionMoves(self._client, name)

    def versions(self) -> list[Version]:
        """All versions, newest first."""
        model = self._moves.model()
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

    def made_from(self, inputs: str) -> Version | None:
        """The newest version whose training had these inputs."""
        return next((each for each in self.versions() if each.facts.inputs == inputs), None)

    def register(self, facts: VersionFacts, source: str, run_id: str | None) -> Version:
        """Make a version; one of the same content and inputs is taken again, with what it was
        judged against this time and where its artifacts are now. It waits as the challenger,
        unless it is the champion.

        Args:
            source: where its adapter is stored.
            run_id: of the MLflow run that made it.
        """
        with self._moves.alone():
            version = self._same_as(facts) or self._made(facts, source, run_id)
            judged = facts.model_copy(update={"run_name": version.facts.run_name})
            if judged != version.facts:
                self._client.set_model_version_tag(
                    self.name, version.number, FACTS, judged.model_dump_json()
                )
            if CHAMPION not in version.aliases:
                self._moves.set_alias(CHALLENGER, version.number)
            return self.find(version.number)

    def _same_as(self, facts: VersionFacts) -> Version | None:
        """The first version of the same content and inputs."""
        for version in reversed(self.versions()):
            if (version.facts.content, version.facts.inputs) == (facts.content, facts.inputs):
                return version
        return None

    def _made(self, facts: VersionFacts, source: str, run_id: str | None) -> Version:
        """A new version; the first one, if another machine has made the same at the same time."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(self.name, tags={"made_by": "vlmtune"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {FACTS: facts.model_dump_json(), PUBLISHED: "no"}
        made = self._client.create_model_version(self.name, source, run_id=run_id, tags=tags)
        first = self._same_as(facts) or self.find(str(made.version))
        if first.number != str(made.version):
            self._client.delete_model_version(self.name, str(made.version))
        return first

    def mark(self, version: Version, published: Published) -> None:
        """Note whether a version is on the Hub."""
        self._client.set_model_version_tag(self.name, version.number, PUBLISHED, published)

    def promote(self, version: Version, why: str) -> Move:
        """Make a version the champion, as a person wants it.

        Returns:
            The move, which is kept.
        """
        return self._moves.move(version.number, why, by_hand=True, objection=lambda state: None)

    def promote_if_due(self, version: Version, why: str) -> Move:
        """Make a version the champion, as a run whose model passed the gate asks for it.

        Raises:
            NotDue: of vlmtune.tracking.moves: the champion is no longer the one it was judged
                against, or a person took the champion away from it.
        """

        def objection(state: RegistryState) -> str | None:
            return _objection(version, state)

        return self._moves.move(version.number, why, by_hand=False, objection=objection)

    def objection(self, version: Version) -> str | None:
        """Why a run may not make a version the champion; None if it may, or if it is."""
        return _objection(version, self._moves.state())

    def rollback(self, why: str) -> Move:
        """Make the champion before the present one the champion again.

        Raises:
            UserError: there was none before.
            NotDue: the champion has changed meanwhile.
        """
        state = self._moves.state()
        former = former_champion(state.moves, state.champion) if state.champion else None
        if former is None:
            raise UserError(
                f"{self.name} has no earlier champion to go back to.",
                "Name a version: run.py promote VERSION.",
            )

        def objection(now: RegistryState) -> str | None:
            same = now.champion == state.champion
            return None if same else f"the champion is v{now.champion} now: see `run.py versions`."

        return self._moves.move(former, why, by_hand=True, objection=objection)

    def moves(self) -> list[Move]:
        """Every change of the champion, oldest first."""
        return self._moves.state().moves

    def promoted_runs(self) -> list[str]:
        """Names of the runs whose models became champion, the latest first."""
        runs = {version.number: version.facts.run_name for version in self.versions()}
        numbers = dict.fromkeys(move.after for move in reversed(self.moves()))
        return [runs[number] for number in numbers if number in runs]


def _objection(version: Version, state: RegistryState) -> str | None:
    if state.champion == version.number:
        return None
    if taken := state.taken_back.get(version.number):
        return (
            f"v{version.number} stays challenger: {taken.by} replaced it by v{taken.after} "
            f"({taken.why}), and `run.py promote v{version.number}` alone undoes that"
        )
    if state.champion != version.facts.beaten:
        champion = (
            f"the champion is v{state.champion} now" if state.champion else "there is none now"
        )
        beaten = f"v{version.facts.beaten}" if version.facts.beaten else "no champion"
        return f"v{version.number} stays challenger: {champion}, it was judged against {beaten}"
    return None
