"""The data contract at work: what is wrong with the texts and pictures of a row."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError, ValidationInfo, create_model
from pydantic_core import PydanticCustomError

from vlmtune.catalog.languages import CJK, detect_language
from vlmtune.catalog.ledger import Reason
from vlmtune.config.contract import ContractConfig, TextRule
from vlmtune.config.data import DESCRIPTION, PICTURE

SHOWN_CHARACTERS = 60
SHOWN_VALUES = 5
UNSPACED = CJK + r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # and Thai, Lao, Burmese, Khmer

# (text, ISO 639-1 code of the description) -> what is wrong, or nothing.
Check = Callable[[str, str], str | None]


class Contract:
    """The rules for a row, as one pydantic model.

    Args:
        config: the rules; a field without one must not be empty.
        columns: field -> column or columns of the catalog, for messages.
    """

    def __init__(self, config: ContractConfig, columns: Mapping[str, str | list[str]]) -> None:
        names = {field: _column_name(column) for field, column in columns.items()}
        self._texts = [field for field in columns if field != PICTURE]
        self._model = _row_model(config, {field: names[field] for field in self._texts})
        self._pictures = config.pictures
        self._picture_name = names.get(PICTURE, "the picture")

    def text_problems(self, fields: Mapping[str, str], language: str = "") -> list[Reason]:
        """All that is wrong with the texts of a row.

        Args:
            fields: field -> cleaned text; a field that is not there counts as empty.
            language: ISO 639-1 code of the description; empty if unsure, then no rule on the
                description's language is applied.

        Returns:
            Reasons in the order of the fields; empty if the texts keep the contract.
        """
        row = {field: fields.get(field) or "" for field in self._texts}
        try:
            self._model.model_validate(row, context=language)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
            return [Reason(e["type"], e["msg"], str(e["loc"][0])) for e in problems]
        return []

    def picture_problems(self, sizes: Sequence[tuple[int, int]]) -> list[Reason]:
        """All that is wrong with the pictures of a row.

        Args:
            sizes: (width, height) of each picture, in pixels.

        Returns:
            Reasons; empty if the pictures keep the contract or there are none.
        """
        return [Reason(*problem, PICTURE) for problem in self._picture_problems(sizes)]

    def _picture_problems(self, sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[str, str]]:
        rule, name = self._pictures, self._picture_name
        for number, (width, height) in enumerate(sizes, start=1):
            if min(width, height) < rule.min_side:
                yield (
                    "picture_too_small",
                    f"{name}: picture {number} is {width} x {height} pixels, "
                    f"at least {rule.min_side} on the shorter side are expected",
                )
        if len(sizes) > rule.max_count:
            yield (
                "too_many_pictures",
                f"{name}: there are {len(sizes)} pictures, at most {rule.max_count} are expected",
            )


def _column_name(column: str | list[str]) -> str:
    if isinstance(column, str):
        return f"the column {column!r}"
    return f"the columns {', '.join(map(repr, column))}"


def _row_model(config: ContractConfig, names: Mapping[str, str]) -> type[BaseModel]:
    """A model with an attribute for each rule, so that each tells its own problem.

    The attributes of one field share its name as their alias, which may be any text.
    """
    attributes: dict[str, Any] = {}
    for field, name in names.items():
        for code, check in _checks(config.texts.get(field, TextRule()), field):
            kind = Annotated[str, AfterValidator(_validator(code, check, name))]
            attributes[f"rule_{len(attributes)}"] = (kind, Field(validation_alias=field))
    return create_model("Row", **attributes)


def _validator(code: str, check: Check, name: str) -> Callable[[str, ValidationInfo], str]:
    def validate(text: str, info: ValidationInfo) -> str:
        # An empty text is told of once, by the rule that it must be there.
        if code == "missing_text" or text.strip():
            problem = check(text, info.context or "")
            if problem is not None:
                raise PydanticCustomError(code, "{problem}", {"problem": f"{name} {problem}"})
        return text

    return validate


def _checks(rule: TextRule, field: str) -> Iterator[tuple[str, Check]]:
    """The checks that a rule asks for, each with the code of its reason."""
    if rule.required:
        yield "missing_text", _is_there
    if rule.min_length is not None:
        yield "text_too_short", _not_shorter(rule.min_length)
    if rule.max_length is not None:
        yield "text_too_long", _not_longer(rule.max_length)
    if rule.allowed is not None:
        yield "not_allowed", _one_of(rule.allowed)
    if rule.banned:
        yield "banned_phrase", _without(rule.banned)
    if rule.pattern is not None:
        yield "pattern_not_found", _matching(rule.pattern)
    if rule.languages:
        yield "wrong_language", _in_language(rule.languages, is_known=field == DESCRIPTION)


def _is_there(text: str, language: str) -> str | None:
    return None if text.strip() else "is empty, text is expected"


def _not_shorter(length: int) -> Check:
    def check(text: str, language: str) -> str | None:
        if len(text) >= length:
            return None
        return f"holds {_shown(text)}, {len(text)} characters, at least {length} are expected"

    return check


def _not_longer(length: int) -> Check:
    def check(text: str, language: str) -> str | None:
        if len(text) <= length:
            return None
        return f"holds {_shown(text)}, {len(text)} characters, at most {length} are expected"

    return check


def _one_of(allowed: list[str]) -> Check:
    values = frozenset(_composed(value) for value in allowed)
    by_folded = {_folded(value): value for value in allowed}

    @lru_cache  # a wrong category is often in many rows
    def suggestion(folded: str) -> str:
        close = difflib.get_close_matches(folded, by_folded, n=1)
        return f" (did you mean {by_folded[close[0]]!r}?)" if close else ""

    def check(text: str, language: str) -> str | None:
        if text in values:
            return None
        hint = suggestion(_folded(text[:SHOWN_CHARACTERS]))
        return f"holds {_shown(text)}, allowed are {_listed(allowed)}{hint}"

    return check


def _without(banned: list[str]) -> Check:
    patterns = {
        _folded(phrase): (phrase, _whole(_folded(phrase))) for phrase in banned if phrase.strip()
    }

    def check(text: str, language: str) -> str | None:
        folded = _folded(text)
        found = [
            phrase
            for needle, (phrase, pattern) in patterns.items()
            if needle in folded and pattern.search(folded)  # the first alone is much faster
        ]
        return f"holds what is banned: {_listed(found)}" if found else None

    return check


def _whole(phrase: str) -> re.Pattern[str]:
    """A phrase that is no part of a longer word, where the script shows where words end."""
    letter = rf"[^\W{UNSPACED}]"
    before = rf"(?<!{letter})" if re.match(letter, phrase) else ""
    after = rf"(?!{letter})" if re.search(rf"{letter}\Z", phrase) else ""
    return re.compile(before + re.escape(phrase) + after)


def _matching(pattern: str) -> Check:
    compiled = re.compile(pattern)

    def check(text: str, language: str) -> str | None:
        if compiled.search(text):
            return None
        return f"holds {_shown(text)}, text that matches '{pattern}' is expected"

    return check


def _in_language(languages: list[str], is_known: bool) -> Check:
    expected = frozenset(code.lower() for code in languages)

    def check(text: str, language: str) -> str | None:
        found = language if is_known else detect_language(text)
        if not found or found in expected:
            return None
        return f"holds {_shown(text)} in the language {found!r}, expected is {_listed(languages)}"

    return check


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return _composed(" ".join(text.casefold().split()))


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "...")


def _listed(values: Sequence[str]) -> str:
    more = f" and {len(values) - SHOWN_VALUES} more" if len(values) > SHOWN_VALUES else ""
    return ", ".join(map(_shown, values[:SHOWN_VALUES])) + more
