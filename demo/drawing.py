"""Drawn product pictures: one object in one colour and one pattern before a soft background.

Shapes are drawn several times too large and scaled down, which smooths their edges. `Look` holds
everything about a picture that is not its meaning (shades, sizes, angles); the demo catalog and the
pretraining pictures share the shapes here and each draw their looks from a range of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]

SHADES: dict[str, Colour] = {
    "red": (201, 46, 50),
    "orange": (238, 126, 34),
    "yellow": (242, 200, 46),
    "green": (62, 150, 84),
    "blue": (48, 104, 196),
    "purple": (124, 70, 172),
    "pink": (240, 132, 176),
    "grey": (116, 122, 130),
}
COLOURS = tuple(SHADES)
PATTERNS = ("plain", "striped", "dotted", "checked", "zigzag")
OBJECTS = ("mug", "bowl", "vase", "lamp", "clock", "chair", "bag", "cushion")

UNIT = 1000  # shapes are laid out on a square of this side and scaled to the canvas


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    colour: str
    pattern: str
    object: str


@dataclass(frozen=True)
class Look:
    """How a picture shows it."""

    base: Colour
    light: Colour
    accent: Colour
    wall: Colour
    wall_top: Colour
    floor: Colour
    period: int = 130  # width of one pattern repeat, in units
    slant: int = 0  # degrees by which the pattern is turned
    scale: float = 0.9
    angle: float = 0.0  # degrees by which the object is turned
    shift: tuple[int, int] = (0, 0)  # units
    mirrored: bool = False
    flatness: float = 0.5  # 1.0 leaves out the shading


class Canvas:
    """A mask that is drawn on in units, whatever its size in pixels."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.image = Image.new("L", (side, side))
        self.draw = ImageDraw.Draw(self.image)

    def pixels(self, *units: int) -> list[int]:
        """Scale units to pixels in whole numbers, so that no rounding differs between machines."""
        return [value * self.side // UNIT for value in units]

    def ellipse(self, *box: int, fill: int = 255) -> None:
        self.draw.ellipse(self.pixels(*box), fill=fill)

    def rounded(self, *box: int, radius: int, fill: int = 255) -> None:
        self.draw.rounded_rectangle(self.pixels(*box), radius * self.side // UNIT, fill=fill)

    def polygon(self, *points: int, fill: int = 255) -> None:
        self.draw.polygon(self.pixels(*points), fill=fill)

    def line(self, *points: int, width: int) -> None:
        self.draw.line(self.pixels(*points), fill=255, width=width * self.side // UNIT)

    def arc(self, *box: int, start: int, end: int, width: int) -> None:
        self.draw.arc(self.pixels(*box), start, end, fill=255, width=width * self.side // UNIT)


def _mug(body: Canvas, trim: Canvas, pale: Canvas) -> None:
    body.arc(610, 330, 870, 660, start=0, end=360, width=62)
    body.rounded(220, 220, 720, 800, radius=90)
    pale.ellipse(245, 205, 695, 285)


def _bowl(body: Canvas, trim: Canvas, pale: Canvas) -> None:
    body.draw.pieslice(body.pixels(120, 20, 880, 800), 0, 180, fill=255)
    trim.rounded(380, 775, 620, 830, radius=20)
    pale.ellipse(120, 360, 880, 460)


def _vase(body: Canvas, trim: Canvas, pale: Canvas) -> None:
    body.polygon(420, 120, 580, 120, 600, 480, 400, 480)
    body.ellipse(270, 330, 730, 830)
    body.rounded(370, 780, 630, 860, radius=20)
    pale.ellipse(405, 95, 595, 145)


def _lamp(body: Canvas, trim: Canvas, pale: Canvas) -> None:
    trim.rounded(475, 500, 525, 850, radius=10)
    trim.rounded(350, 830, 650, 880, radius=25)
    body.polygon(350, 110, 650, 110, 840, 560, 160, 560)


def _clock(body: Canvas, trim: Canvas, pale: Canvas) -> None:
    body.ellipse(130, 130, 870, 870)
    pale.ellipse(330, 330, 670, 670)
    trim.arc(320, 320, 680, 680, start=0, end=360, width=18)
    trim.line(500, 505, 500, 370, width=30)
    trim.line(495, 500, 600, 550, width=30)


def _chair(body: Canvas, trim: Canvas, pale: Canvas) -> None:
    trim.polygon(265, 600, 315, 600, 290, 920, 240, 920)
    trim.polygon(685, 600, 735, 600, 760, 920, 710, 920)
    trim.rounded(290, 420, 340, 600, radius=10)
    trim.rounded(660, 420, 710, 600, radius=10)
    body.rounded(260, 80, 740, 470, radius=80)
    body.rounded(200, 540, 800, 690, radius=60)


def _bag(body: Canvas, trim: Canvas, pale: Canvas) -> None:
    trim.arc(340, 100, 660, 640, start=180, end=360, width=45)
    body.polygon(220, 360, 780, 360, 850, 880, 150, 880)


def _cushion(body: Canvas, trim: Canvas, pale: Canvas) -> None:
    body.polygon(110, 150, 500, 205, 890, 150, 845, 500, 890, 850, 500, 795, 110, 850, 155, 500)
    for x, y in ((110, 150), (890, 150), (110, 850), (890, 850)):
        trim.ellipse(x - 35, y - 35, x + 35, y + 35)


SHAPES: dict[str, Callable[[Canvas, Canvas, Canvas], None]] = {
    "mug": _mug,
    "bowl": _bowl,
    "vase": _vase,
    "lamp": _lamp,
    "clock": _clock,
    "chair": _chair,
    "bag": _bag,
    "cushion": _cushion,
}


def _stripes(mask: Canvas, period: int) -> None:
    for x in range(0, UNIT, period):
        mask.polygon(x, 0, x + period // 2, 0, x + period // 2, UNIT, x, UNIT)


def _dots(mask: Canvas, period: int) -> None:
    radius = period * 3 // 10
    for row, y in enumerate(range(0, UNIT + period, period)):
        for x in range(row % 2 * period // 2, UNIT + period, period):
            mask.ellipse(x - radius, y - radius, x + radius, y + radius)


def _checks(mask: Canvas, period: int) -> None:
    for row, y in enumerate(range(0, UNIT, period)):
        for x in range(row % 2 * period, UNIT, 2 * period):
            mask.polygon(x, y, x + period, y, x + period, y + period, x, y + period)


def _zigzags(mask: Canvas, period: int) -> None:
    step = period * 3 // 4
    for y in range(-period, UNIT + period, period * 3 // 2):
        tops = [(x * step, y + x % 2 * period) for x in range(-1, UNIT // step + 2)]
        lower = [(x, height + period * 6 // 10) for x, height in reversed(tops)]
        mask.polygon(*(value for point in tops + lower for value in point))


PATTERN_PAINTERS: dict[str, Callable[[Canvas, int], None]] = {
    "plain": lambda mask, period: None,
    "striped": _stripes,
    "dotted": _dots,
    "checked": _checks,
    "zigzag": _zigzags,
}


def _gradient(side: int, first: Colour, last: Colour) -> Image.Image:
    """A square that runs from `first` at the top to `last` at the bottom."""
    ramp = Image.linear_gradient("L").resize((side, side))
    ends = (Image.new("RGB", (side, side), colour) for colour in (last, first))
    return Image.composite(*ends, ramp)


def _backdrop(side: int, look: Look) -> Image.Image:
    """Wall and floor, with a soft line between them."""
    wall = _gradient(side, look.wall_top, look.wall)
    horizon = Canvas(side)
    horizon.polygon(0, 740, UNIT, 740, UNIT, UNIT, 0, UNIT)
    soft = horizon.image.filter(ImageFilter.BoxBlur(side // 40))
    return Image.composite(Image.new("RGB", (side, side), look.floor), wall, soft)


def _shadow(side: int, look: Look) -> Image.Image:
    """The mask of a blurred shadow on the floor, under the object."""
    middle, low = 500 + look.shift[0], 500 + look.shift[1] + round(370 * look.scale)
    half = round(360 * look.scale)
    shadow = Canvas(side)
    shadow.ellipse(middle - half, low - 50, middle + half, low + 60, fill=90)
    return shadow.image.filter(ImageFilter.BoxBlur(side // 25))


def _pattern(scene: Scene, look: Look, side: int) -> Image.Image:
    """A full square of the scene's pattern."""
    mask = Canvas(side)
    PATTERN_PAINTERS[scene.pattern](mask, look.period)
    # A turned square has empty corners; shapes keep clear of them while the slant is small.
    turned = mask.image.rotate(look.slant, Image.Resampling.BILINEAR) if look.slant else mask.image
    plain, marks = (Image.new("RGB", (side, side), c) for c in (look.base, look.light))
    return Image.composite(marks, plain, turned)


def _object(scene: Scene, look: Look, side: int) -> Image.Image:
    """The object alone, on a transparent square."""
    body, trim, pale = Canvas(side), Canvas(side), Canvas(side)
    SHAPES[scene.object](body, trim, pale)
    picture = _pattern(scene, look, side)
    lit = Image.linear_gradient("L").rotate(90).resize((side, side))
    darkness = lit.point([round(value * (1 - look.flatness) * 0.5) for value in range(256)])
    picture.paste((20, 16, 30), mask=darkness)
    behind = Image.new("RGB", (side, side), look.accent)
    picture = Image.composite(picture, behind, body.image)
    picture.paste(look.light, mask=pale.image)
    on_top = trim.image if scene.object == "clock" else ImageChops.subtract(trim.image, body.image)
    picture.paste(look.accent, mask=on_top)
    outline = ImageChops.lighter(ImageChops.lighter(body.image, trim.image), pale.image)
    picture.putalpha(outline)
    return picture


def _placed(thing: Image.Image, look: Look) -> Image.Image:
    """Mirror, turn, scale and shift the object within its square."""
    side = thing.width
    if look.mirrored:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = thing.rotate(look.angle, Image.Resampling.BILINEAR)
    small = max(8, math.floor(side * look.scale))
    turned = turned.resize((small, small), Image.Resampling.BILINEAR)
    corner = [(side - small) // 2 + shift * side // UNIT for shift in look.shift]
    placed = Image.new("RGBA", (side, side))
    placed.paste(turned, tuple(corner))
    return placed


def paint(scene: Scene, look: Look, size: int, oversampling: int = 4) -> Image.Image:
    """Draw `scene` as a square RGB picture of `size` pixels."""
    side = size * oversampling
    picture = _backdrop(side, look)
    picture.paste((40, 34, 44), mask=_shadow(side, look))
    thing = _placed(_object(scene, look, side), look)
    picture.paste(thing, mask=thing.getchannel("A"))
    return picture.resize((size, size), Image.Resampling.LANCZOS)
