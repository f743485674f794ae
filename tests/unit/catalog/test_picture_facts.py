"""Facts of pictures: what they are, and that each picture is decoded only once."""

import io
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image, ImageDraw

from vlmtune.catalog import picture_facts
from vlmtune.catalog.picture_facts import (
    FactsStore,
    PictureFacts,
    inspect_picture,
    inspect_pictures,
)
from vlmtune.catalog.pictures import BrokenPicture

WHITE = "#ffffff"
RunPython = Callable[..., subprocess.CompletedProcess[str]]


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def plain(colour: str, mode: str = "RGB") -> bytes:
    """A small PNG of one colour."""
    return encoded(Image.new(mode, (8, 6), colour))


def drawing(colour: str, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """A mug in a colour, on white, scaled from one drawing."""
    picture = Image.new("RGB", (640, 480), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((330, 160, 500, 340), outline=colour, width=30)
    pen.rounded_rectangle((160, 100, 400, 400), 40, fill=colour)
    pen.rectangle((180, 180, 380, 220), fill="black")
    return picture.resize(size, Image.Resampling.LANCZOS)


def digest(data: bytes) -> str:
    """What the store knows a picture by."""
    return sha256(data).hexdigest()


def bits_apart(one: PictureFacts, other: PictureFacts) -> int:
    """Differing bits of the perceptual hashes."""
    return (int(one.phash, 16) ^ int(other.phash, 16)).bit_count()


def colours_apart(one: PictureFacts, other: PictureFacts) -> float:
    """Mean difference of the thumbnails' channels, 0 to 255."""
    pairs = zip(bytes.fromhex(one.colour), bytes.fromhex(other.colour), strict=True)
    return sum(abs(a - b) for a, b in pairs) / 48


# Facts ----------------------------------------------------------------------------------------


def test_facts_of_a_picture() -> None:
    """Size, hash and the thumbnail's colours in reading order."""
    picture = Image.new("RGB", (40, 20), "#0000ff")
    picture.paste("#ff0000", (0, 0, 40, 5))
    facts = inspect_picture(encoded(picture), WHITE)
    assert (facts.width, facts.height, facts.repairs, facts.problem) == (40, 20, [], "")
    assert facts.colour == "ff0000" * 4 + "0000ff" * 12
    assert len(facts.phash) == 16
    assert int(facts.phash, 16) >= 0


def test_size_is_upright_and_full() -> None:
    """A large JPEG is looked at in small, and its size is still its own."""
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = inspect_picture(encoded(drawing("red", (1600, 1200)), "JPEG", exif=exif), WHITE)
    assert (facts.width, facts.height) == (1200, 1600)
    assert [code for code, _ in facts.repairs] == ["picture_rotated"]


def test_background_shows() -> None:
    """What is transparent has the colour that is laid below."""
    facts = inspect_picture(plain("#ff000000", "RGBA"), "#00ff00")
    assert facts.colour == "00ff00" * 16
    assert facts.repairs == [("alpha_flattened", "what is transparent is laid on #00ff00")]


def test_broken_picture_has_a_problem() -> None:
    """And no other facts."""
    whole = encoded(Image.effect_noise((800, 600), 50), "JPEG")
    for data in (b"", b"no picture", whole[: len(whole) * 9 // 10]):
        facts = inspect_picture(data, WHITE)
        assert facts.problem
        assert facts == PictureFacts(problem=facts.problem)


@pytest.mark.parametrize(
    ("form", "size", "options"),
    [
        ("JPEG", (640, 480), {"quality": 40}),
        ("JPEG", (2000, 1500), {}),
        ("PNG", (200, 150), {}),
        ("WEBP", (500, 375), {"quality": 50}),
    ],
)
def test_copies_look_alike(form: str, size: tuple[int, int], options: dict[str, object]) -> None:
    """A copy that is resized and encoded anew is near in hash and in colour."""
    original = inspect_picture(encoded(drawing("#c03020")), WHITE)
    copy = inspect_picture(encoded(drawing("#c03020", size), form, **options), WHITE)
    assert bits_apart(original, copy) <= 4
    assert colours_apart(original, copy) < 3


def test_recoloured_drawing_differs_in_colour() -> None:
    """Its hash hardly tells: that is what the thumbnail is for."""
    red = inspect_picture(encoded(drawing("#c03020")), WHITE)
    blue = inspect_picture(encoded(drawing("#2050c0")), WHITE)
    assert bits_apart(red, blue) <= 4
    assert colours_apart(red, blue) > 12


# Many pictures --------------------------------------------------------------------------------


def test_equal_pictures_are_decoded_once() -> None:
    """The order is that of the pictures, and the first of equal ones is the one decoded."""
    red, blue, broken = plain("red"), plain("blue"), b"broken"
    with FactsStore(None, WHITE) as store:
        found = inspect_pictures([red, blue, red, broken, broken], store)
    assert [key for key, _, _ in found] == [digest(d) for d in (red, blue, red, broken, broken)]
    assert [newly for _, _, newly in found] == [True, True, False, True, False]
    assert [facts.colour[:6] for _, facts, _ in found] == ["ff0000", "0000ff", "ff0000", "", ""]
    assert found[3][1].problem


@pytest.mark.parametrize("workers", [None, 1, 4])
def test_order_holds_for_any_number_of_workers(workers: int | None) -> None:
    """Each picture has its own facts."""
    pictures = [encoded(Image.new("RGB", (side, 8))) for side in range(1, 40)]
    with FactsStore(None, WHITE) as store:
        found = inspect_pictures(pictures, store, workers)
        assert inspect_pictures([], store, workers) == []
    assert [facts.width for _, facts, _ in found] == list(range(1, 40))


def test_known_picture_is_not_decoded(tmp_path: Path) -> None:
    """Its facts are those of the store, even if decoding would find others."""
    data = plain("red")
    told = PictureFacts(1, 2, "0" * 16, "1" * 96, [("picture_rotated", "by hand")])
    with FactsStore(tmp_path / "facts.sqlite", WHITE) as store:
        store.add({digest(data): told})
    with FactsStore(tmp_path / "facts.sqlite", WHITE) as store:
        assert inspect_pictures([data], store) == [(digest(data), told, False)]


def test_broken_picture_is_known_too(tmp_path: Path) -> None:
    """It is not tried again in each run."""
    path = tmp_path / "facts.sqlite"
    with FactsStore(path, WHITE) as store:
        ((_, first, newly),) = inspect_pictures([b"broken"], store)
    assert newly
    with FactsStore(path, WHITE) as store:
        assert inspect_pictures([b"broken"], store) == [(digest(b"broken"), first, False)]


def test_lack_of_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run may have more of it."""
    data = plain("red")

    def no_memory(*_: object) -> None:
        raise BrokenPicture("MemoryError: ")

    with FactsStore(None, WHITE) as store:
        with monkeypatch.context() as patch:
            patch.setattr(picture_facts, "decode_with_repairs", no_memory)
            assert inspect_pictures([data], store)[0][1].problem == "MemoryError: "
        ((_, facts, newly),) = inspect_pictures([data], store)
    assert newly
    assert facts.problem == ""


# Store ----------------------------------------------------------------------------------------


def test_facts_come_back_as_they_were() -> None:
    """Those asked for and no others, more than one query may name."""
    facts = {
        digest(b"%d" % number): PictureFacts(number, 7, "é" * 3, "", [("a", "b"), ("c", "d")], "p")
        for number in range(2000)
    }
    with FactsStore(None, WHITE) as store:
        store.add(facts)
        assert store.known([*facts, digest(b"never seen")]) == facts
        assert list(store.known([digest(b"7")])) == [digest(b"7")]
        assert store.known([]) == {}


def test_other_rules_are_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another background or another version of the code; the old facts stay for the old rules."""
    path, facts = tmp_path / "facts.sqlite", {digest(b"x"): PictureFacts(1, 1)}
    with FactsStore(path, WHITE) as store:
        store.add(facts)
    with FactsStore(path, "#000000") as store:
        assert store.known(list(facts)) == {}
        store.add({digest(b"x"): PictureFacts(2, 2)})
    with monkeypatch.context() as patch:
        patch.setattr(picture_facts, "INSPECTION_VERSION", 999)
        with FactsStore(path, WHITE) as store:
            assert store.known(list(facts)) == {}
    with monkeypatch.context() as patch:
        patch.setattr(picture_facts, "version", {"pillow": "1", "imagehash": "4.3.2"}.get)
        with FactsStore(path, WHITE) as store:
            assert store.known(list(facts)) == {}
    with FactsStore(path, WHITE.upper()) as store:
        assert store.known(list(facts)) == facts


ADD_MANY = """
import sys
from pathlib import Path
from vlmtune.catalog.picture_facts import FactsStore, PictureFacts
with FactsStore(Path(sys.argv[1]), "#ffffff") as store:
    for number in range(100):
        store.add({f"{sys.argv[2]} {number}": PictureFacts(number, 1)})
"""


@pytest.mark.parametrize("begun", [None, b"no database" * 100])
def test_two_processes_share_a_store(tmp_path: Path, root: Path, begun: bytes | None) -> None:
    """Both begin it, or mend it, write at the same time, and a third one sees it all."""
    path = tmp_path / "new" / "facts.sqlite"
    if begun:
        path.parent.mkdir()
        path.write_bytes(begun)
    command = [sys.executable, "-c", ADD_MANY, str(path)]
    running = [subprocess.Popen([*command, name], cwd=root) for name in ("a", "b")]
    with FactsStore(path, WHITE) as store:
        assert [process.wait(60) for process in running] == [0, 0]
        names = [f"{name} {number}" for name in ("a", "b") for number in range(100)]
        assert set(store.known(names)) == set(names)


def test_store_is_opened_by_one_process_at_a_time(tmp_path: Path) -> None:
    """Otherwise two that find a broken file would move each other's new one away."""
    path = tmp_path / "facts.sqlite"
    with ThreadPoolExecutor(1) as pool:
        with FileLock(f"{path}.lock"):
            opening = pool.submit(lambda: FactsStore(path, WHITE).__exit__())
            with pytest.raises(TimeoutError):
                opening.result(timeout=0.3)
            assert not path.exists()
        opening.result(timeout=60)
    assert path.exists()


def test_file_that_is_no_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is moved aside, not lost, and a new store is begun."""
    path = tmp_path / "facts.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with FactsStore(path, WHITE) as store:
        store.add({digest(b"x"): PictureFacts(1, 1)})
        assert digest(b"x") in store.known([digest(b"x")])
    assert (tmp_path / "facts.sqlite.broken").read_bytes() == b"no database at all" * 100
    (warning,) = caplog.messages
    assert str(path) in warning
    assert "renamed to facts.sqlite.broken" in warning
    with FactsStore(path, WHITE) as store:
        assert digest(b"x") in store.known([digest(b"x")])
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("kept", "zeros"), [(20_000, 0), (20_000, 8192)], ids=["cut", "holed"])
def test_damaged_database(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: int, zeros: int
) -> None:
    """One that was cut, as by a full disk, or has a hole is begun anew as well."""
    path = tmp_path / "facts.sqlite"
    facts = PictureFacts(1, 1, "0" * 16, "0" * 96)
    with FactsStore(path, WHITE) as store:
        store.add({digest(b"%d" % number): replace(facts, width=number) for number in range(500)})
    content = path.read_bytes()
    path.write_bytes(content[:kept] + bytes(zeros) + (content[kept + zeros :] if zeros else b""))
    with FactsStore(path, WHITE) as store:
        assert store.known([digest(b"%d" % number) for number in range(500)]) == {}
    assert path.with_name("facts.sqlite.broken").exists()
    assert len(caplog.messages) == 1


def test_import_is_cheap(run_python: RunPython) -> None:
    """Nothing heavy comes with the module."""
    heavy = "{'PIL', 'numpy', 'scipy', 'pywt', 'imagehash', 'torch'}"
    code = f"import sys, vlmtune.catalog.picture_facts; print({heavy} & set(sys.modules))"
    assert run_python("-c", code).stdout == "set()\n"
