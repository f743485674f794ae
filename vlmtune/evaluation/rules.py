"""Rules of the trade: what a description must not do, however well it scores."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vlmtune.catalog.languages import detect_language
from vlmtune.catalog.texts import ENTITY, HTML
from vlmtune.config.evaluation import RulesConfig

CUT = "cut"
CONTROL_TOKENS = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|\[/?INST\]|<(?:bos|eos|pad|unk)>")
NUMBER = re.compile(r"\d+(?:[.,\u00a0\u202f'’]\d+)*")
WORD = re.compile(r"\w+|[^\w\s]")
LEAKED = 12  # characters of a prompt's line that are no accident in an answer
LOOPED_WORDS, LOOPS = 12, 4  # up to so many words in a row, said so often in a row
LOOPED_LETTERS = re.compile(r"(\S{1,20}?)\1{7,}")


@dataclass(frozen=True)
class Answer:
    """A description and all that it is held against.

    Attributes:
        text: what a model wrote.
        reference: the catalog's own description.
        fields: the row's fields, such as name and category.
        prompt: the texts of the row's prompt, system message included.
        cut: whether the text was cut by `max_new_tokens`.
    """

    text: str
    reference: str
    fields: dict[str, str]
    prompt: list[str]
    cut: bool = False


def broken_rules(answer: Answer, rules: RulesConfig) -> dict[str, str]:
    """Rule -> what is wrong, for each rule that a description breaks."""
    return {
        name: problem
        for name, check in CHECKS.items()
        if (problem := next(check(answer, rules), None)) is not None
    }


def _empty(answer: Answer, rules: RulesConfig) -> Iterator[str]:
    if not answer.text.strip():
        yield "there is no description"


def _cut(answer: Answer, rules: RulesConfig) -> Iterator[str]:
    if answer.cut:
        yield "cut off: generation.max_new_tokens came before its end"


def _length(answer: Answer, rules: RulesConfig) -> Iterator[str]:
    found = len(answer.text)
    if rules.min_length is not None and found < rules.min_length:
        yield f"{found} characters, at least {rules.min_length} are wanted"
    if rules.max_length is not None and found > rules.max_length:
        yield f"{found} characters, at most {rules.max_length} are wanted"


def _missing_name(answer: Answer, rules: RulesConfig) -> Iterator[str]:
    for field in rules.named_fields:
        value = answer.fields.get(field, "")
        if _plain(value) not in _plain(answer.text):
            yield f"{field} is not named: {value!r}"


def _banned(answer: Answer, rules: RulesConfig) -> Iterator[str]:
    for phrase in rules.banned:
        if re.search(rf"(?<!\w){re.escape(_plain(phrase))}(?!\w)", _plain(answer.text)):
            yield f"banned phrase {phrase!r}"


def _html(answer: Answer, rules: RulesConfig) -> Iterator[str]:
    if not rules.no_html:
        return
    for pattern in (HTML, ENTITY):
        if found := pattern.search(answer.text):
            yield f"HTML: {found[0][:40]!r}"


def _prompt_leak(answer: Answer, rules: RulesConfig) -> Iterator[str]:
    """Chat-control tokens, or a line of the prompt that is in no reference and no field."""
    if not rules.no_prompt_leak:
        return
    if found := CONTROL_TOKENS.search(answer.text):
        yield f"the prompt shows through: {found[0]!r}"
    text, allowed = _plain(answer.text), _plain(answer.reference)
    values = [_plain(value) for value in answer.fields.values()]
    for line in (_plain(line) for part in answer.prompt for line in part.splitlines()):
        own = any(line in value for value in values)
        if len(line) >= LEAKED and line in text and line not in allowed and not own:
            yield f"the prompt shows through: {line[:60]!r}"


def _repetition(answer: Answer, rules: RulesConfig) -> Iterator[str]:
    """The same words, or letters, over and over: generation that is caught in a loop."""
    if not rules.no_repetition:
        return
    words = WORD.findall(answer.text.casefold())
    for size in range(1, LOOPED_WORDS + 1):
        same = 0
        for at in range(size, len(words)):
            same = same + 1 if words[at] == words[at - size] else 0
            if same >= size * (LOOPS - 1):
                phrase = " ".join(words[at - size + 1 : at + 1])
                yield f"{phrase[:60]!r} again and again"
    if found := LOOPED_LETTERS.search(answer.text):
        yield f"{found[1]!r} again and again"


def _language(answer: Answer, rules: RulesConfig) -> Iterator[str]:
    if rules.same_language and answer.reference.strip():
        found, wanted = detect_language(answer.text), detect_language(answer.reference)
        if found and wanted and found != wanted:
            yield f"written in {found!r}, the catalog's own text in {wanted!r}"


def _invented_number(answer: Answer, rules: RulesConfig) -> Iterator[str]:
    if not rules.no_invented_numbers:
        return
    known = {
        number
        for text in (answer.reference, *answer.prompt, *answer.fields.values())
        for number in _numbers(text)
    }
    for number in _numbers(answer.text):
        if number not in known:
            yield f"the number {number} is neither in the prompt nor in the catalog's text"


def _numbers(text: str) -> list[str]:
    """Numbers of a text, with what groups their digits left out: `1,000` is `1000`. A comma or
    point before one or two last digits is a decimal point, and zeros behind it say nothing."""
    found = []
    for number in NUMBER.findall(text):
        *groups, last = re.split(r"\D", number)
        if groups and len(last) != 3:
            decimals = last.rstrip("0")
            found.append("".join(groups).lstrip("0") + (f".{decimals}" if decimals else ""))
        else:
            found.append("".join([*groups, last]).lstrip("0") or "0")
    return found


def _plain(text: str) -> str:
    """In lower case, with single spaces."""
    return " ".join(text.casefold().split())


Check = Callable[[Answer, RulesConfig], Iterator[str]]
CHECKS: dict[str, Check] = {
    "empty": _empty,
    CUT: _cut,
    "length": _length,
    "missing_name": _missing_name,
    "banned_phrase": _banned,
    "html": _html,
    "prompt_leak": _prompt_leak,
    "repetition": _repetition,
    "language": _language,
    "invented_number": _invented_number,
}
