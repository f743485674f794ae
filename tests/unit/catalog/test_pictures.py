"""Pictures of any kind become upright RGB, or are refused as broken."""

import io
import logging
import struct
import subprocess
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageOps

from vlmtune.catalog.pictures import (
    MAX_PIXELS,
    BrokenPicture,
    DecodedPicture,
    decode_picture,
    decode_with_repairs,
)

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


def codes(decoded: DecodedPicture) -> list[str]:
    """The codes of what was done to a picture."""
    return [code for code, _ in decoded.repairs]


def row(values: list[float], kind: str) -> Image.Image:
    """A grey picture of one row, of any number type."""
    return Image.fromarray(numpy.array([values], dtype=kind))


def greys(picture: Image.Image) -> list[int]:
    """The greys of the first row; fails if it has colours."""
    pixels = [picture.getpixel((x, 0)) for x in range(picture.width)]
    assert all(len(set(pixel)) == 1 for pixel in pixels)
    return [pixel[0] for pixel in pixels]


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def hollow_png(side: int) -> bytes:
    """A PNG of a few bytes that says it is large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100)))


def tiff(size: tuple[int, int], data: bytes, bits: int, *more: tuple[int, int]) -> bytes:
    """A grey TIFF that Pillow itself does not write; `more` are further tags."""
    width, height = size
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags = tags | {279: len(data)} | dict(more)
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def icon(picture: bytes) -> bytes:
    """An ICO file that says its picture is 16 x 16 pixels."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture), 22) + picture


def mac_icon(picture: bytes) -> bytes:
    """An ICNS file that says its picture is 128 x 128 pixels."""
    entry = b"ic07" + struct.pack(">I", 8 + len(picture)) + picture
    return b"icns" + struct.pack(">I", 8 + len(entry)) + entry


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize(("orientation", "red_corner"), [(3, (31, 0)), (6, (0, 0)), (8, (0, 31))])
def test_each_format_is_turned_once(
    form: str, options: dict[str, object], orientation: int, red_corner: tuple[int, int]
) -> None:
    """Pillow turns a TIFF by itself and no other; who gets the picture turns it no more."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(halves("RGB", RED, BLUE, (32, 16)), form, exif=exif, **options)
    decoded = decode_with_repairs(data)
    assert near(decoded.image.getpixel(red_corner), RED, 20)
    assert decoded.image.size == (decoded.width, decoded.height)
    assert decoded.width == (32 if orientation == 3 else 16)
    assert codes(decoded) == ["picture_rotated"]
    assert f"orientation {orientation}" in decoded.repairs[0][1]
    assert ImageOps.exif_transpose(decoded.image).size == decoded.image.size
    assert decoded.image.info == {}


def test_size_is_that_of_the_whole_picture() -> None:
    """Of a JPEG that is decoded smaller and turned, too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_with_repairs(encoded(Image.new("RGB", (1600, 800)), "JPEG", exif=exif), 64)
    assert decoded.image.size == (100, 200)
    assert (decoded.width, decoded.height) == (800, 1600)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"XX", b"II*\0", b"II*\0\xff\xff\xff\xff"])
def test_broken_exif_is_ignored(form: str, exif: bytes) -> None:
    """The picture is taken as it lies."""
    data = encoded(halves("RGB", RED, BLUE, (32, 16)), form, exif=b"Exif\0\0" + exif)
    decoded = decode_with_repairs(data)
    assert (decoded.image.size, decoded.repairs) == ((32, 16), [])


def test_background() -> None:
    """Transparent parts show the colour asked for, half transparent ones a mix."""
    picture = halves("RGBA", (*RED, 0), (*RED, 128))
    found = decode_with_repairs(encoded(picture), background="#0000ff")
    assert found.image.getpixel((0, 0)) == BLUE
    assert near(found.image.getpixel((7, 0)), (128, 0, 127), 1)
    assert found.repairs == [("alpha_flattened", "what is transparent is laid on #0000ff")]


@pytest.mark.parametrize(
    ("values", "kind", "form", "wanted"),
    [
        ([-5, 0, 2**30, 2**31 - 1], "int32", "TIFF", [0, 0, 128, 255]),
        ([0, 50, 100], "int32", "TIFF", [0, 128, 255]),
        ([-1, 0, 0.5, 1, numpy.nan], "float32", "TIFF", [0, 0, 128, 255, 0]),
        ([0, 0.1, 0.2], "float32", "TIFF", [0, 26, 51]),
        ([0, 50, 200, numpy.inf, -numpy.inf], "float32", "TIFF", [0, 64, 255, 255, 0]),
        ([numpy.nan, numpy.nan], "float32", "TIFF", [0, 0]),
        ([0, 300, 32768, 65535], "int32", "PPM", [0, 1, 128, 255]),
    ],
)
def test_deep_greys(values: list[float], kind: str, form: str, wanted: list[int]) -> None:
    """Integers and floats are scaled to their largest value, 16 bits cut to the high 8."""
    decoded = decode_with_repairs(encoded(row(values, kind), form))
    assert greys(decoded.image) == wanted
    assert codes(decoded) == ["colours_converted"]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (tiff((2, 1), struct.pack("<II", 2**31, 2**32 - 1), 32), [128, 255]),
        (tiff((2, 1), bytes([0x80, 0x0F, 0xFF]), 12), [128, 255]),
    ],
    ids=["unsigned 32-bit", "12-bit"],
)
def test_greys_that_pillow_has_no_mode_for(data: bytes, wanted: list[int]) -> None:
    """Bright greys stay bright."""
    assert greys(decode_picture(data)) == wanted


def test_16_bits_are_not_scaled() -> None:
    """A picture that is all middle grey, with a scale of its own, does not become white."""
    assert greys(decode_picture(b"P5 2 1 1000\n" + struct.pack(">2H", 500, 250))) == [128, 64]


def test_transparent_grey_of_16_bits() -> None:
    """One grey of a 16-bit PNG may stand for transparent; its neighbours do not."""
    values = numpy.array([[1000, 1001]], dtype="uint16")
    decoded = decode_with_repairs(encoded(Image.fromarray(values), transparency=1000))
    assert greys(decoded.image) == [255, 3]
    assert codes(decoded) == ["colours_converted", "alpha_flattened"]


BMP_565 = (
    *(b"BM", struct.pack("<IHHI", 70, 0, 0, 66)),
    *(struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0),),
    *(struct.pack("<III", 0xF800, 0x07E0, 0x001F), struct.pack("<HH", 0xF800, 0xFFFF)),
)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("P", (4, 4))),
        encoded(Image.new("L", (4, 4))),
        encoded(Image.new("1", (4, 4))),
        encoded(Image.new("RGBA", (4, 4), (*RED, 255))),
        encoded(Image.new("LA", (4, 4), (90, 255))),
        encoded(Image.new("RGB", (4, 4)), transparency=RED),
        encoded(Image.new("RGB", (4, 4)), "GIF"),
        b"".join(BMP_565),
    ],
    ids=["palette", "grey", "1 bit", "RGBA", "LA", "unused key", "GIF", "BMP of 5-6-5 bits"],
)
def test_exact_conversion_is_no_repair(data: bytes) -> None:
    """Nor is an alpha channel that hides nothing."""
    assert decode_with_repairs(data).repairs == []


@pytest.mark.parametrize(
    ("picture", "form", "message"),
    [
        (Image.new("CMYK", (4, 4)), "JPEG", "CMYK"),
        (Image.new("YCbCr", (4, 4)), "TIFF", "YCbCr"),
        (Image.new("LAB", (4, 4)), "TIFF", "LAB"),
        (row([1, 2], "uint16"), "PNG", "16 bits"),
        (row([1, 2], "int32"), "TIFF", "32-bit integers"),
        (row([1, 2], "float32"), "TIFF", "float"),
    ],
)
def test_converted_colours_are_named(picture: Image.Image, form: str, message: str) -> None:
    """The message says what the colours were."""
    ((code, found),) = decode_with_repairs(encoded(picture, form)).repairs
    assert code == "colours_converted"
    assert message in found


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO"])
def test_first_frame_is_told(form: str) -> None:
    """With the number of frames there are."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE, WHITE)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    decoded = decode_with_repairs(data)
    assert near(decoded.image.getpixel((8, 8)), RED, 5)
    assert decoded.repairs == [("first_frame_taken", "the first of 3 frames is taken")]


def test_broken_frames_after_the_first() -> None:
    """They cannot be counted, and the first is none the worse for it."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE, WHITE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])[:-36]
    with pytest.raises(IndexError):
        assert Image.open(io.BytesIO(data)).n_frames
    decoded = decode_with_repairs(data)
    assert (decoded.image.getpixel((8, 8)), decoded.repairs) == (RED, [])


def test_postscript_is_refused() -> None:
    """Pillow would start Ghostscript for it."""
    data = encoded(Image.new("RGB", (4, 4)), "EPS")
    assert Image.open(io.BytesIO(data)).format == "EPS"
    with pytest.raises(BrokenPicture, match="no picture of a format that can be read"):
        decode_picture(data)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (icon(hollow_png(20_000)), "DecompressionBombError"),
        (icon(hollow_png(10_000)), "DecompressionBombWarning"),
        (icon(encoded(Image.new("1", (9000, 9000)))), "9000 x 9000 pixels are too many"),
        (mac_icon(hollow_png(20_000)), "DecompressionBombError"),
        (mac_icon(hollow_png(10_000)), "DecompressionBombWarning"),
        (
            encoded(Image.new("P", (1, 1)), "GIF").replace(
                struct.pack("<HHHH", 0, 0, 1, 1), struct.pack("<HHHH", 0, 0, 9000, 9000)
            ),
            "9000 x 9000 pixels are too many",
        ),
        (
            tiff((9, 9), bytes(99), 8, (259, 8), (322, 9008), (323, 9008), (324, 8), (325, 99)),
            "a tile of 9008 x 9008 pixels is too large",
        ),
    ],
    ids=["ico", "ico, less", "ico, whole", "icns", "icns, less", "gif", "tiff"],
)
def test_bomb_below_a_small_header(data: bytes, problem: str) -> None:
    """A file that declares a small picture and holds a huge one is refused."""
    with pytest.raises(BrokenPicture, match=problem):
        decode_picture(data)


def test_wide_picture() -> None:
    """It is the number of pixels that counts."""
    assert decode_picture(encoded(Image.new("RGB", (60_000, 1)))).size == (60_000, 1)


def test_photo_of_12_megapixels() -> None:
    """It is decoded whole, and quickly where a small one will do."""
    data = encoded(Image.effect_noise((4000, 3000), 50).convert("RGB"), "JPEG")
    assert decode_picture(data).size == (4000, 3000)
    start = time.perf_counter()
    decoded = decode_with_repairs(data, longest_side=64)
    assert time.perf_counter() - start < 3
    assert decoded.image.size == (500, 375)
    assert (decoded.width, decoded.height) == (4000, 3000)


def test_truncated_jpeg_is_found_when_decoded_smaller() -> None:
    """A JPEG of which the last part is missing is refused at any size."""
    data = encoded(Image.effect_noise((800, 600), 50), "JPEG")
    with pytest.raises(BrokenPicture, match="truncated"):
        decode_picture(data[: len(data) * 9 // 10], longest_side=64)


def test_problem_is_the_same_each_time() -> None:
    """It is kept and compared, so it holds no address in memory."""
    problems = []
    for _ in range(2):
        with pytest.raises(BrokenPicture) as caught:
            decode_picture(b"no picture")
        problems.append(str(caught.value))
    assert problems == ["no picture of a format that can be read"] * 2


def test_threads_leave_the_filters_as_they_were() -> None:
    """Threads that overlap do not restore each other's warning filters."""
    filters, propagate = list(warnings.filters), logging.getLogger("PIL").propagate
    data = encoded(Image.effect_noise((300, 300), 50), "JPEG")
    with ThreadPoolExecutor(8) as pool:
        sizes = {picture.size for picture in pool.map(decode_picture, [data] * 200)}
    assert sizes == {(300, 300)}
    assert warnings.filters == filters
    assert logging.getLogger("PIL").propagate == propagate


COLOURS, ALPHA = ["colours_converted"], ["alpha_flattened"]
ROTATED, FIRST = ["picture_rotated"], ["first_frame_taken"]
OUTCOMES: dict[str, list[str] | str] = {  # codes of the repairs, or part of the problem
    "16bit.cropped.tif": COLOURS,
    "1_trns.png": ALPHA,
    "avif_hopper.avif": [],
    "avif_star.avifs": ALPHA + FIRST,
    "avif_transparency.avif": ALPHA,
    "broken.png": "no picture of a format",
    "broken_data_stream.png": "unrecognized data stream",
    "decompression_bomb.gif": "DecompressionBombError",
    "decompression_bomb.ico": "DecompressionBombError",
    "decompression_bomb_extents.gif": FIRST,
    "exif_typeerror.jpg": [],
    "frozenpond.mpo": FIRST,
    "hopper.ico": [],
    "hopper.ppm": [],
    "hopper.psd": [],
    "hopper_bad_exif.jpg": [],
    "hopper_gray.jpg": [],
    "hopper_mask.png": ALPHA,
    "hopper_orientation_3.jpg": ROTATED,
    "hopper_orientation_6.jpg": ROTATED,
    "hopper_orientation_6.webp": ROTATED,
    "i_trns.png": COLOURS + ALPHA,
    "icc_profile_big.jpg": [],
    "invalid-exif.jpg": [],
    "iss634.apng": FIRST,
    "iss634.gif": FIRST,
    "iss634.webp": FIRST,
    "l_trns.png": ALPHA,
    "p_trns_single.png": ALPHA,
    "pil_sample_cmyk.jpg": COLOURS,
    "sugarshack_no_data.mpo": FIRST,
    "test-card-lossless.jp2": [],
    "tiff_16bit_RGB.tiff": COLOURS,
    "transparent.gif": ALPHA,
    "transparent.png": ALPHA,
    "transparent.webp": ALPHA,
    "transparent_background_text.png": ALPHA,
    "truncated_app14.jpg": [],
    "truncated_image.png": "truncated",
    "truncated_jpeg.jpg": "truncated",
    "xmp_tags_orientation.png": ROTATED,
}
needs_hostile = pytest.mark.skipif(
    not HOSTILE.is_dir(), reason="../shared/catalogs/pillow_hostile is not here"
)


@pytest.mark.catalogs
@needs_hostile
def test_all_hostile_pictures_have_an_outcome() -> None:
    """The table below leaves none out."""
    assert {path.name for path in HOSTILE.iterdir()} == set(OUTCOMES)


@pytest.mark.catalogs
@needs_hostile
@pytest.mark.parametrize("longest_side", [None, 64])
@pytest.mark.parametrize(("name", "outcome"), OUTCOMES.items())
def test_hostile_picture(name: str, outcome: list[str] | str, longest_side: int | None) -> None:
    """Each of Pillow's own trouble makers becomes RGB or is refused, and says so."""
    data = (HOSTILE / name).read_bytes()
    if isinstance(outcome, str):
        with pytest.raises(BrokenPicture, match=outcome):
            decode_with_repairs(data, longest_side)
    else:
        decoded = decode_with_repairs(data, longest_side)
        assert decoded.image.mode == "RGB"
        assert codes(decoded) == outcome


PRINT_NOTHING = """
import sys
from pathlib import Path
from vlmtune.catalog.pictures import BrokenPicture, decode_picture
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        decode_picture(path.read_bytes())
    except BrokenPicture:
        pass
print("done")
"""


@pytest.mark.catalogs
@needs_hostile
def test_hostile_pictures_print_nothing(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """No warning of Pillow gets through, in a process of its own: pytest would swallow them."""
    result = run_python("-W", "always", "-c", PRINT_NOTHING, str(HOSTILE))
    assert (result.stdout, result.stderr) == ("done\n", "")


def test_what_pillow_logs_is_not_printed(
    run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Python prints errors that a library logs, even if nobody has set logging up."""
    (tmp_path / "a.tiff").write_bytes(tiff((1, 1), b"0", 8, (277, 1000)))
    result = run_python("-W", "always", "-c", PRINT_NOTHING, str(tmp_path))
    assert (result.stdout, result.stderr) == ("done\n", "")
