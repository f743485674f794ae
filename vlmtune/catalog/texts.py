"""Texts of the catalog made plain: no HTML, no entities, no invisible characters."""

import html
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html.entities import html5

ELEMENTS = (
    "a abbr acronym address applet area article aside audio b base bdi bdo big blink blockquote "
    "body br button canvas caption center cite code col colgroup data datalist dd del details dfn "
    "dialog dir div dl dt em embed fieldset figcaption figure font footer form frame frameset h1 "
    "h2 h3 h4 h5 h6 head header hgroup hr html i iframe image img input ins kbd label legend li "
    "link main map mark marquee menu meta meter nav nobr noframes noscript o:p object ol optgroup "
    "option output p param path picture pre progress q rp rt ruby samp script search section "
    "select small source span strike strong style sub summary sup svg table tbody td template "
    "textarea tfoot th thead time title tr track tt u ul var video wbr"
)
BLOCKS = (
    "address article aside blockquote body button caption center dd details dialog dir div dl dt "
    "fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr legend li main menu "
    "nav ol option p pre section summary table tbody tfoot thead title tr ul"
)
BLOCK_NAMES, CELL_NAMES = frozenset(BLOCKS.split()), frozenset(["td", "th"])

# A tag is complete, up to its ">". Possessive quantifiers keep hostile texts linear. `s` counts
# in lower case only: "size <S>" is no strike-through.
TAG = (
    rf"<(?P<close>/?)(?P<name>{ELEMENTS.replace(' ', '|')}|(?-i:s))"
    r"""(?:>|[\s/](?:[^<>"']++|"[^"]*"|'[^']*')*+>|[\s/][^<>]*+>)"""
)
COMMENT = r"<!--(?:(?!<!--|-->).)*+-->|<!doctype\b[^<>]*+>"
HTML = re.compile(rf"{TAG}|(?P<comment>{COMMENT})", re.IGNORECASE | re.DOTALL)
HTML_OR_SPECIAL = re.compile(rf"{HTML.pattern}|(?P<special>[<&])", re.IGNORECASE | re.DOTALL)
BREAK = "\x1f"  # stands for the line break around a block until its white space is known

ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)
ESCAPE_LEVELS = 2

CONTROLS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\N{SOFT HYPHEN}\N{ZERO WIDTH SPACE}\N{BOM}\ud800-\udfff]"
)
# These three end a line, so the words around them must not run together.
WITHOUT_CONTROLS = {ord(character): "\n" for character in "\x0b\x0c\x85"}
NAMED = 4  # so many of the things found are named in a message


@dataclass(frozen=True)
class CleanedText:
    """A text after cleaning.

    Attributes:
        text: what is left, without outer white space.
        repairs: (code, message) of each rule that changed the text, in order.
    """

    text: str
    repairs: list[tuple[str, str]]


def clean_text(text: str) -> CleanedText:
    """Make a text plain: HTML removed, entities decoded, Unicode NFC, no control characters.

    Line ends become LF and no-break spaces plain ones; that and outer white space are no repair.
    Angle brackets that hold no known HTML element stay, as in "5 < 6" or "size <M>".

    Args:
        text: of any length and content; it never raises.
    """
    repairs = []
    for code, rule in RULES:
        text, message = rule(text)
        if message:
            repairs.append((code, message))
    return CleanedText(text.strip(), repairs)


def _without_html(text: str) -> tuple[str, str]:
    if "<" not in text:
        return text, ""
    found = [_tag_name(match) for match in HTML.finditer(text)]
    if not found:
        return text, ""
    # The parser sees only bare known tags, all else is escaped: it is slow on hostile markup, and
    # would drop what only looks like a tag.
    plain = _parsed_text(HTML_OR_SPECIAL.sub(_as_bare_markup, text))
    return _tidy_lines(plain), f"HTML removed: {_listed(found)}"


def _parsed_text(markup: str) -> str:
    from bs4 import BeautifulSoup

    return BeautifulSoup(f"<div>{markup}</div>", "html.parser").get_text()


def _tag_name(match: re.Match[str]) -> str:
    if match["comment"]:
        return "<!-- -->" if match["comment"].startswith("<!--") else "<!doctype>"
    return f"<{match['name'].lower()}>"


def _as_bare_markup(match: re.Match[str]) -> str:
    if match["special"]:
        return html.escape(match["special"])
    if match["comment"]:
        return ""
    name = match["name"].lower()
    if name == "br":
        return "\n"
    if name in CELL_NAMES:
        return " "
    tag = f"<{match['close']}{name}>"
    return f"{BREAK}{tag}{BREAK}" if name in BLOCK_NAMES else tag


def _tidy_lines(text: str) -> str:
    blocks = [block.strip() for block in text.split(BREAK)]
    text = "\n".join(block for block in blocks if block)
    lines = [re.sub("[ \t]+", " ", line).strip() for line in text.splitlines()]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines))


def _without_entities(text: str) -> tuple[str, str]:
    found: list[str] = []
    for _ in range(ESCAPE_LEVELS):
        if "&" not in text:
            break
        entities = ENTITY.findall(text)
        text = ENTITY.sub(_decoded, text)
        found += [entity for entity in entities if _is_known(entity)]
    return text, f"entities decoded: {_listed(found)}" if found else ""


def _is_known(entity: str) -> bool:
    return entity[1] == "#" or entity[1:] in html5


def _decoded(match: re.Match[str]) -> str:
    # html.unescape alone would also decode what an unknown name begins with, as in &notme;
    return html.unescape(match[0]) if _is_known(match[0]) else match[0]


def _with_plain_spaces(text: str) -> tuple[str, str]:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\N{NO-BREAK SPACE}", " "), ""


def _normalised(text: str) -> tuple[str, str]:
    if unicodedata.is_normalized("NFC", text):
        return text, ""
    return unicodedata.normalize("NFC", text), "characters written in their composed form (NFC)"


def _without_controls(text: str) -> tuple[str, str]:
    found = CONTROLS.findall(text)
    if not found:
        return text, ""
    text = CONTROLS.sub(lambda match: WITHOUT_CONTROLS.get(ord(match[0]), ""), text)
    names = [f"U+{ord(character):04X}" for character in found]
    # What stood apart may now combine.
    return unicodedata.normalize("NFC", text), f"invisible characters removed: {_listed(names)}"


def _listed(found: Iterable[str]) -> str:
    names = list(dict.fromkeys(found))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


RULES: list[tuple[str, Callable[[str], tuple[str, str]]]] = [
    ("", _with_plain_spaces),
    ("html_removed", _without_html),
    ("entities_decoded", _without_entities),
    ("html_removed", _without_html),  # what was escaped HTML
    ("", _with_plain_spaces),
    ("unicode_normalised", _normalised),
    ("control_characters_removed", _without_controls),
]
