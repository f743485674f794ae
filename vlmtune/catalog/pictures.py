"""From encoded bytes to a picture that a model can take, guarded against hostile files."""

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64_000_000  # 64 megapixels: 192 MB as RGB; a larger one is taken for a bomb


class BrokenPicture(ValueError):
    """The bytes are no picture that can be used; the message says why."""


def decode_picture(data: bytes, longest_side: int | None = None) -> "Image":
    """Decode a picture upright and in RGB; transparency is laid on white.

    Args:
        data: an encoded picture (JPEG, PNG, WebP, GIF ...); of an animation, the first frame.
        longest_side: a JPEG may be decoded smaller, down to about this size, which is faster.

    Raises:
        BrokenPicture: unreadable, truncated, or more than `MAX_PIXELS` pixels.
    """
    import numpy
    from PIL import Image, ImageOps
    from qwen_vl_utils.vision_process import to_rgb

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(io.BytesIO(data))
            if picture.width * picture.height > MAX_PIXELS:
                raise BrokenPicture(f"{picture.width} x {picture.height} pixels are too many")
            if longest_side is not None:
                picture.draft("RGB", (longest_side, longest_side))
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I;16"):  # Pillow would clip nearly all of it to white
                picture = Image.fromarray((numpy.asarray(picture) >> 8).astype("uint8"))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
            return to_rgb(picture)
    except BrokenPicture:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds of error on broken files
        raise BrokenPicture(f"{type(error).__name__}: {error}") from error
