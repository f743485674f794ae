"""Pictures of any kind become upright RGB, or are refused as broken."""

import io
from pathlib import Path

import numpy
import pytest
from PIL import Image

from vlmtune.catalog.pictures import MAX_PIXELS, BrokenPicture, decode_picture

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = ROOT.parent / "shared" / "catalogs" / "pillow_hostile" / "images"
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def near(found: tuple[int, ...], wanted: tuple[int, ...], by: int) -> bool:
    """Whether two colours are about the same."""
    return all(abs(a - b) <= by for a, b in zip(found, wanted, strict=True))


def halves(mode: str, left: object, right: object, size: tuple[int, int] = (8, 4)) -> Image.Image:
    """A picture with a left and a right colour."""
    picture = Image.new(mode, size, right)
    picture.paste(left, (0, 0, size[0] // 2, size[1]))
    return picture


@pytest.mark.parametrize(
    ("orientation", "size", "red_corner"),
    [(1, (8, 4), (0, 0)), (3, (8, 4), (7, 0)), (6, (4, 8), (0, 0)), (8, (4, 8), (0, 7))],
)
def test_exif_orientation(
    orientation: int, size: tuple[int, int], red_corner: tuple[int, int]
) -> None:
    """A picture that a camera stored sideways stands upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode_picture(encoded(halves("RGB", RED, BLUE), exif=exif))
    assert picture.size == size
    assert picture.getpixel(red_corner) == RED
    opposite = (size[0] - 1 - red_corner[0], size[1] - 1 - red_corner[1])
    assert picture.getpixel(opposite) == BLUE


@pytest.mark.parametrize(
    ("mode", "opaque", "clear", "shown"),
    [("RGBA", (*RED, 255), (0, 0, 0, 0), RED), ("LA", (90, 255), (0, 0), (90, 90, 90))],
)
def test_alpha_is_laid_on_white(
    mode: str, opaque: tuple[int, ...], clear: tuple[int, ...], shown: tuple[int, ...]
) -> None:
    """What is transparent is white, not the black below it."""
    picture = decode_picture(encoded(halves(mode, opaque, clear)))
    assert picture.mode == "RGB"
    assert picture.getpixel((0, 0)) == shown
    assert picture.getpixel((7, 0)) == WHITE


def test_transparent_palette_colour_is_laid_on_white() -> None:
    """A palette with a transparent colour, as in GIF and small PNG files."""
    picture = Image.new("P", (8, 4), 1)
    picture.putpalette([*RED, 0, 0, 0])
    picture.paste(0, (0, 0, 4, 4))
    for form in ("PNG", "GIF"):
        found = decode_picture(encoded(picture, form, transparency=1))
        assert found.mode == "RGB"
        assert (found.getpixel((0, 0)), found.getpixel((7, 0))) == (RED, WHITE)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk(form: str) -> None:
    """Print colours are turned into screen colours, not inverted."""
    found = decode_picture(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), form))
    assert found.mode == "RGB"
    assert near(found.getpixel((8, 8)), RED, 40)


@pytest.mark.parametrize(("form", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")])
def test_16_bit_grey_keeps_its_greys(form: str, mode: str) -> None:
    """Black, middle grey and white of a 16-bit picture; Pillow alone clips them to white."""
    values = numpy.array([0, 32768, 65535], dtype=">u2" if mode == "I;16B" else "<u2")
    data = encoded(Image.frombytes(mode, (3, 1), values.tobytes()), form)
    assert Image.open(io.BytesIO(data)).mode == mode
    picture = decode_picture(data)
    assert [picture.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_first_frame_of_an_animation() -> None:
    """Of an animation the first frame is taken."""
    frames = [Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert decode_picture(data).getpixel((4, 4)) == RED


def test_jpeg_is_decoded_smaller() -> None:
    """A check of a large JPEG does not decode all of it, and other formats come as they are."""
    picture = Image.new("RGB", (1600, 1200), RED)
    assert decode_picture(encoded(picture, "JPEG")).size == (1600, 1200)
    assert decode_picture(encoded(picture, "JPEG"), longest_side=64).size == (200, 150)
    assert decode_picture(encoded(picture, "PNG"), longest_side=64).size == (1600, 1200)


def test_too_many_pixels() -> None:
    """A picture just above the limit is refused by its declared size."""
    side = int(MAX_PIXELS**0.5) + 1
    data = encoded(Image.new("1", (side, side)))
    assert len(data) < 50_000
    with pytest.raises(BrokenPicture, match=f"{side} x {side} pixels are too many"):
        decode_picture(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"no picture", encoded(halves("RGB", RED, BLUE, (64, 64)))[:-40]],
    ids=["empty", "text", "truncated"],
)
def test_broken(data: bytes) -> None:
    """Bytes that are no whole picture are refused."""
    with pytest.raises(BrokenPicture):
        decode_picture(data)


UNREADABLE = {
    "broken.png",
    "broken_data_stream.png",
    "decompression_bomb.gif",
    "decompression_bomb.ico",
    "truncated_image.png",
    "truncated_jpeg.jpg",
}


@pytest.mark.catalogs
@pytest.mark.skipif(not HOSTILE.is_dir(), reason="../shared/catalogs/pillow_hostile is not here")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hostile_pictures() -> None:
    """Each of Pillow's own trouble makers becomes RGB or is refused, and nothing else happens."""
    broken = set()
    for path in sorted(HOSTILE.iterdir()):
        for longest_side in (None, 64):
            try:
                picture = decode_picture(path.read_bytes(), longest_side)
            except BrokenPicture:
                broken.add(path.name)
            else:
                assert picture.mode == "RGB", path.name
                assert picture.width * picture.height <= MAX_PIXELS, path.name
                picture.load()
    assert broken == UNREADABLE
