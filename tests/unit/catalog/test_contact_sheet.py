"""The contact sheet, by the colours that stand in its cells."""

import io
import struct
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image

from vlmtune.catalog.contact_sheet import BROKEN, GAP, PAPER, contact_sheet, thumbnail

SIDE = 112
CELL_HEIGHT = SIDE + 18 + GAP


def picture(colour: str, size: tuple[int, int] = (300, 300), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def opened(sheet: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(sheet))
    assert image.format == "PNG"
    return image.convert("RGB")


def near_corner_of(sheet: Image.Image, row: int, column: int) -> str:
    """The colour a little inside the upper left corner of a cell."""
    left, top = GAP + column * (SIDE + GAP), GAP + row * CELL_HEIGHT
    red, green, blue = sheet.getpixel((left + 4, top + 4))  # type: ignore[misc]
    return f"#{red:02x}{green:02x}{blue:02x}"


def test_pictures_stand_row_by_row():
    sheet = opened(
        contact_sheet([(picture(c), c) for c in ("#ff0000", "#00ff00", "#0000ff")], columns=2)
    )

    assert sheet.size == (2 * (SIDE + GAP) + GAP, 2 * CELL_HEIGHT + GAP)
    assert near_corner_of(sheet, 0, 0) == "#ff0000"
    assert near_corner_of(sheet, 0, 1) == "#00ff00"
    assert near_corner_of(sheet, 1, 0) == "#0000ff"
    assert near_corner_of(sheet, 1, 1) == PAPER


@pytest.mark.parametrize("broken", [b"", b"not a picture", picture("#ff0000")[:60], bomb()])
def test_a_picture_that_cannot_be_read_is_a_grey_cell(broken: bytes):
    limit = Image.MAX_IMAGE_PIXELS
    sheet = opened(contact_sheet([(broken, "broken"), (picture("#00ff00"), "fine")]))

    assert near_corner_of(sheet, 0, 0) == BROKEN
    assert near_corner_of(sheet, 0, 1) == "#00ff00"
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_picture_keeps_its_shape():
    assert thumbnail(picture("#ff0000", (400, 100)), 100).size == (100, 25)
    sheet = opened(contact_sheet([(picture("#ff0000", (400, 100)), "wide")]))

    assert near_corner_of(sheet, 0, 0) != "#ff0000"
    assert sheet.getpixel((GAP + SIDE // 2, GAP + SIDE // 2)) == (255, 0, 0)


def test_no_more_pictures_are_taken_than_shown():
    def endless() -> Iterator[tuple[bytes, str]]:
        while True:
            yield picture("#ff0000", (8, 8)), "again"

    sheet = opened(contact_sheet(endless(), columns=3, limit=5))

    assert sheet.size == (3 * (SIDE + GAP) + GAP, 2 * CELL_HEIGHT + GAP)


def test_no_picture_gives_a_blank_sheet():
    sheet = opened(contact_sheet([]))

    assert sheet.getcolors() == [(sheet.width * sheet.height, (255, 255, 255))]


@pytest.mark.parametrize("caption", ["word " * 5000, "a" * 5000, "两\n行", "\x00\x07", "", "قميص"])
def test_a_caption_stays_below_its_own_picture(caption: str):
    sheet = opened(contact_sheet([(picture("#ff0000"), caption), (picture("#00ff00"), "")]))
    beside = sheet.crop((GAP + SIDE + 2, GAP + SIDE, sheet.width, sheet.height))

    assert beside.getcolors() == [(beside.width * beside.height, (255, 255, 255))]


def test_a_caption_is_drawn():
    sheet = opened(contact_sheet([(picture("#ff0000"), "Tovikar")]))
    below = sheet.crop((GAP, GAP + SIDE, GAP + SIDE, sheet.height))

    assert len(below.getcolors() or []) > 1
