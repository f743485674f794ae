"""From encoded bytes to a picture that a model can take, guarded against hostile files."""

import io
import logging
import re
import threading
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 64_000_000  # 64 megapixels: 192 MB as RGB; a larger one is taken for a bomb

# What Pillow decodes by itself. A list of what is allowed, since one of what is refused would let
# in what a later Pillow adds. Left out: EPS (runs Ghostscript), IPTC (opens whatever is inside it,
# EPS too), WMF, BUFR, GRIB and HDF5 (need a program or a handler of the platform), MPEG (video).
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "JPEG2000", "ICO", "PSD", "PPM", "DIB"),
    *("BLP", "CUR", "DCX", "DDS", "FITS", "FLI", "FTEX", "GBR", "ICNS", "IM", "IMT", "MCIDAS"),
    *("MSP", "PCD", "PCX", "PIXAR", "QOI", "SGI", "SPIDER", "SUN", "XBM", "XPM", "XVTHUMB", "TGA"),
)

ORIENTATION = 0x0112  # EXIF and TIFF tag; its value says how a picture has to be turned:
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
TILE_WIDTH, TILE_HEIGHT = 322, 323  # TIFF tags

# Pillow's raw modes with 16 bits a channel; BGR;16 has 16 bits a pixel, I;16S is signed.
SIXTEEN_BITS = re.compile(r"(?<!BGR);16[BLN]?\b")
COLOUR_SPACES = ("CMYK", "YCbCr", "LAB", "HSV")


class BrokenPicture(ValueError):
    """The bytes are no picture that can be used; the message says why."""


@dataclass(frozen=True)
class DecodedPicture:
    """A picture as a model takes it, and what was done to get there.

    Attributes:
        image: upright RGB without metadata.
        width, height: in pixels, upright, before a JPEG was decoded smaller.
        repairs: code and message of each change that is more than an exact conversion:
            `colours_converted`, `alpha_flattened`, `picture_rotated`, `first_frame_taken`.
    """

    image: "Image"
    width: int
    height: int
    repairs: list[tuple[str, str]] = field(default_factory=list)


def decode_picture(
    data: bytes, longest_side: int | None = None, background: str = "#ffffff"
) -> "Image":
    """Decode a picture upright and in RGB, by the rule of `decode_with_repairs`.

    Args:
        data: an encoded picture (JPEG, PNG, WebP, GIF ...).
        longest_side: a JPEG may be decoded smaller, down to about this size, which is faster.
        background: colour laid below transparent pictures, as `#rrggbb`.

    Raises:
        BrokenPicture: unreadable, truncated, or more than `MAX_PIXELS` pixels.
    """
    return decode_with_repairs(data, longest_side, background).image


def decode_with_repairs(
    data: bytes, longest_side: int | None = None, background: str = "#ffffff"
) -> DecodedPicture:
    """Decode a picture upright and in RGB, and tell what was done to it.

    The rule:
    - Only the formats of `FORMATS` are read; none of them runs another program.
    - More than `MAX_PIXELS` pixels are refused, by the declared size and by the real one.
    - Of an animation or a file of several pictures the first one is taken; of layers, all.
    - CMYK, YCbCr, LAB and HSV become RGB by Pillow's formulas; embedded profiles are ignored.
    - Palette, grey and black and white become RGB as they are.
    - Of 16-bit channels the high 8 bits are taken.
    - Other integers and floats are scaled so that the largest value is white, or 1 if none is
      larger; negative values and NaN are black.
    - What is transparent shows `background`.
    - The picture is turned as its EXIF orientation says; broken EXIF counts as none.

    Args:
        data: an encoded picture.
        longest_side: a JPEG may be decoded smaller, down to about this size, which is faster.
        background: colour laid below transparent pictures, as `#rrggbb`.

    Raises:
        BrokenPicture: unreadable, truncated, of another format, or of too many pixels.
    """
    from PIL import UnidentifiedImageError

    try:
        with _quiet_pillow:
            return _decode(data, longest_side, background)
    except BrokenPicture:
        raise
    except UnidentifiedImageError as error:  # its message has an address in memory
        raise BrokenPicture("no picture of a format that can be read") from error
    except Exception as error:  # Pillow's decoders raise many kinds of error on broken files
        raise BrokenPicture(f"{type(error).__name__}: {error}") from error


def _decode(data: bytes, longest_side: int | None, background: str) -> DecodedPicture:
    from PIL import Image

    picture = Image.open(io.BytesIO(data), formats=_formats())
    _refuse_bomb(picture)
    size, depth = picture.size, str([tile.args for tile in picture.tile[:1]])
    drafted = longest_side and picture.draft("RGB", (longest_side, longest_side))
    tiff_turn = _orientation(picture) if picture.format == "TIFF" else 1
    picture.load()
    _refuse_bomb(picture)  # what a header declares need not be what is in the file
    width, height = size if drafted else picture.size
    turn = _orientation(picture)
    if turn > 4:
        width, height = height, width

    repairs: list[tuple[str, str]] = []
    rgb = _flatten(_to_eight_bits(picture, depth, repairs), background, repairs)
    if turn in TURNS:
        rgb = rgb.transpose(Image.Transpose[TURNS[turn]])
    rgb.info.clear()  # whoever gets the picture must not turn it again
    if tiff_turn in TURNS or turn in TURNS:  # Pillow has turned a TIFF while loading it
        message = f"turned upright, as its EXIF orientation {max(tiff_turn, turn)} says"
        repairs.append(("picture_rotated", message))
    # Last, since counting moves the file away from its first frame.
    if (frames := _count_frames(picture)) > 1:
        repairs.append(("first_frame_taken", f"the first of {frames} frames is taken"))
    return DecodedPicture(rgb, width, height, repairs)


@cache
def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # AVIF, for one, may be left out


def _refuse_bomb(picture: "ImageFile") -> None:
    width, height = picture.size
    if not 0 < width * height <= MAX_PIXELS:
        problem = "too many" if width * height else "none to see"
        raise BrokenPicture(f"{width} x {height} pixels are {problem}")
    tags = getattr(picture, "tag_v2", {})
    width, height = tags.get(TILE_WIDTH, 1), tags.get(TILE_HEIGHT, 1)
    if width * height > MAX_PIXELS:  # a small TIFF may be cut out of a tile of any size
        raise BrokenPicture(f"a tile of {width} x {height} pixels is too large")


def _orientation(picture: "ImageFile") -> int:
    try:
        found = picture.getexif().get(ORIENTATION, 1)
        return int(found) if found in TURNS else 1
    except Exception:  # broken EXIF is no reason to refuse a picture
        return 1


def _count_frames(picture: "ImageFile") -> int:
    if picture.format == "PSD":
        return 1  # Pillow counts the layers, but loads the picture that they make together
    try:
        return getattr(picture, "n_frames", 1)
    except Exception:  # what follows the first frame is broken
        return 1


def _to_eight_bits(picture: "Image", depth: str, repairs: list[tuple[str, str]]) -> "Image":
    """A picture with 8 bits a channel; `depth` holds Pillow's raw mode of the file."""
    if picture.mode in COLOUR_SPACES:
        message = f"{picture.mode} is converted to RGB; an embedded profile is ignored"
    elif _has_sixteen_bits(picture, depth):
        message = "of 16 bits a channel the high 8 are taken"
    elif picture.mode in ("I", "F"):
        kind = "32-bit integers" if picture.mode == "I" else "float values"
        message = f"{kind} are scaled to 8 bits, so that the largest value is white"
    else:
        return picture
    repairs.append(("colours_converted", message))
    return _grey(picture, depth) if picture.mode[0] in "IF" else picture


def _has_sixteen_bits(picture: "Image", depth: str) -> bool:
    deep_grey = picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PPM")
    return deep_grey or bool(SIXTEEN_BITS.search(depth))


def _grey(picture: "Image", depth: str) -> "Image":
    import numpy
    from PIL import Image

    values = numpy.asarray(picture)
    if picture.mode == "I" and "I;32N" in depth:
        values = values.view("uint32")  # Pillow has no unsigned mode, white would be negative
    if _has_sixteen_bits(picture, depth):
        greys = values >> (4 if "I;12" in depth else 8)  # a TIFF may have 12 bits
    else:
        greys = _scaled(values)
    grey = Image.fromarray(greys.astype("uint8"))
    if isinstance(key := picture.info.get("transparency"), int):
        grey.putalpha(Image.fromarray((values != key).astype("uint8") * 255))
    return grey


def _scaled(values: "ndarray") -> "ndarray":
    import numpy

    values = values.astype("float32")
    white = max(1.0, values.max(where=numpy.isfinite(values), initial=0))
    greys = numpy.nan_to_num(values).clip(0, white) / white * 255
    return greys.round()


def _flatten(picture: "Image", background: str, repairs: list[tuple[str, str]]) -> "Image":
    from PIL import Image

    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    alpha = layer.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return layer.convert("RGB")
    repairs.append(("alpha_flattened", f"what is transparent is laid on {background}"))
    flat = Image.new("RGB", picture.size, background)
    flat.paste(layer, mask=alpha)
    return flat


class _QuietPillow:
    """While it is entered, Pillow warns of nothing, and a decompression bomb is an error.

    Python's warning filters are those of the whole process, and `catch_warnings` of several
    threads restore each other's. So the first thread to come sets them, the last one restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        # Its level is left alone: setting it walks all loggers there are, for each picture.
        self._logger = logging.getLogger("PIL")
        self._logger.addHandler(logging.NullHandler())  # else Python prints what none handles

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._set_filters()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)
                self._logger.propagate = self._propagates

    def _set_filters(self) -> None:
        from PIL.Image import DecompressionBombWarning

        self._filters = warnings.catch_warnings()
        self._filters.__enter__()
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", DecompressionBombWarning)
        self._propagates, self._logger.propagate = self._logger.propagate, False


_quiet_pillow = _QuietPillow()
