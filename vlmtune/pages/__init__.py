"""What all our HTML pages share: their look, their safety, and small drawings.

A page needs nothing from outside: no script, no font, no link; the pictures are inside it. Its
template extends `page.html.j2`, whose content security policy keeps it so.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

SHARED = ("page.html.j2", "page.css")  # what templates extend and include
PLOT_WIDTH, PLOT_HEIGHT = 760, 260
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 34  # margins of a plot, in SVG units


def page_environment(templates: Path) -> "Environment":
    """Jinja for pages whose texts may be hostile: everything is escaped.

    Args:
        templates: folder with the page's own templates.
    """
    from jinja2 import ChoiceLoader, DictLoader, Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).resolve().parent
    shared = {name: (here / name).read_text(encoding="utf-8") for name in SHARED}
    environment = Environment(
        loader=ChoiceLoader([FileSystemLoader(templates), DictLoader(shared)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shorten": shorten,
        "number": "{:,}".format,
        "counted": counted,
        "sentence": lambda text: text[:1].upper() + text[1:],
    }
    return environment


def shorten(text: str, longest: int) -> str:
    """At most `longest` characters of a text, with a word on how many are left out."""
    if len(text) <= longest:
        return text
    return f"{text[:longest].rstrip()} … ({len(text) - longest:,} more characters)"


def counted(count: int, noun: str) -> str:
    """A count with its noun, as `1 row` and `1,234 rows`."""
    return f"{count:,} {noun if count == 1 else noun + 's'}"


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About so many round numbers (1, 2 or 5 times a power of ten) from low to high."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / (about - 1)))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / about)
    first, last = math.ceil(low / step - 1e-9), math.floor((low + span) / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def scale(low: float, high: float, start: float, end: float, value: float) -> float:
    """Where a value of low to high stands between start and end, in SVG units."""
    return round(start + (value - low) / ((high - low) or 1.0) * (end - start), 1)
