"""Many pictures on one sheet: what is in a catalog, at a glance."""

import base64
import io
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from vlmtune.catalog.pictures import BrokenPicture, decode_picture

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

GAP = 10  # pixels between cells
CAPTION_HEIGHT = 18
CAPTION_SIZE = 11
LONGEST_CAPTION = 80  # characters; no cell has room for more
PAPER, CELL, BROKEN, INK = "#ffffff", "#f4f4f2", "#d0d0ce", "#333333"


def contact_sheet(
    pictures: Iterable[tuple[bytes, str]], columns: int = 8, side: int = 112, limit: int = 48
) -> bytes:
    """Draw thumbnails with captions, row by row.

    Args:
        pictures: (encoded picture, caption), in the order to show them; no more than `limit`
            are taken from it. A picture that cannot be read, or that is so large that it must
            be a decompression bomb, becomes a grey cell that says "unreadable".
        columns: thumbnails in a row.
        side: a thumbnail's longest side, in pixels.
        limit: at most so many pictures.

    Returns:
        A PNG; blank if there was no picture.
    """
    from PIL import Image, ImageDraw

    shown = list(islice(pictures, limit))
    width = min(columns, len(shown)) or 1
    height = -(-len(shown) // width) or 1
    cell_width, cell_height = side + GAP, side + CAPTION_HEIGHT + GAP
    sheet = Image.new("RGB", (width * cell_width + GAP, height * cell_height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(shown):
        row, column = divmod(number, width)
        left, top = GAP + column * cell_width, GAP + row * cell_height
        _draw_picture(sheet, draw, picture, left, top, side)
        _draw_caption(draw, caption, left, top + side, side)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def thumbnail(picture: bytes, side: int) -> "Image":
    """Decode a picture and shrink it, keeping its shape, to at most `side` pixels a side.

    Raises:
        BrokenPicture: it cannot be read.
    """
    image = decode_picture(picture, longest_side=side)
    image.thumbnail((side, side))
    return image


def data_uri(picture: bytes, side: int, quality: int = 82) -> str | None:
    """A small JPEG as an address: re-encoded, so nothing of the original file reaches the page.

    Args:
        picture: the encoded picture.
        side: the longest side of the small one, in pixels.
        quality: of the JPEG, 1 to 95.

    Returns:
        A `data:` address, or None if the picture cannot be read.
    """
    try:
        image = thumbnail(picture, side)
    except BrokenPicture:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _draw_picture(
    sheet: "Image", draw: "ImageDraw", picture: bytes, left: int, top: int, side: int
) -> None:
    cell = (left, top, left + side - 1, top + side - 1)
    try:
        image = thumbnail(picture, side)
    except BrokenPicture:
        draw.rectangle(cell, fill=BROKEN)
        centre = (left + side / 2, top + side / 2)
        draw.text(centre, "unreadable", fill=INK, font_size=CAPTION_SIZE, anchor="mm")
        return
    draw.rectangle(cell, fill=CELL)
    sheet.paste(image, (left + (side - image.width) // 2, top + (side - image.height) // 2))


def _draw_caption(draw: "ImageDraw", caption: str, left: int, top: int, width: int) -> None:
    text = " ".join(caption.split())[:LONGEST_CAPTION]
    shortened = text
    while text and draw.textlength(shortened, font_size=CAPTION_SIZE) > width:
        text = text[:-1]
        shortened = text.rstrip() + "…"
    draw.text((left, top + 3), shortened, fill=INK, font_size=CAPTION_SIZE)
