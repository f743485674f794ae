"""Pictures that were only encoded anew or resized are near; another colour or shape is not."""

import csv
import hashlib
import io
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import imagehash
import numpy
import pytest
from PIL import Image, ImageDraw
from scipy.cluster.hierarchy import DisjointSet

from vlmtune.catalog.duplicates import Looks, PictureKey, one_of_each
from vlmtune.config.data import DuplicatesConfig

DEMO = Path(__file__).resolve().parents[3] / "demo" / "catalog"
Pair = tuple[int, int]


def near_pairs(pictures: Sequence[PictureKey], config: DuplicatesConfig) -> list[tuple[int, int]]:
    """Pairs of near pictures, as many as it takes to connect all that belong together."""
    looks = Looks(pictures, config)
    groups = DisjointSet(range(len(pictures)))
    firsts: dict[object, int] = {}
    pairs = []
    for number, picture in enumerate(pictures):
        for key in (picture.sha256, picture.look):
            first = firsts.setdefault(key, number)
            if groups.merge(first, number):
                pairs.append((first, number))
    pictures_of = [firsts[look] for look in looks.numbers]
    labels = numpy.arange(len(pictures_of))  # looks of one label are surely connected
    for look, number in enumerate(pictures_of):
        near = looks.near(look)
        for other in one_of_each(near[near < look], labels):
            if groups.merge(pictures_of[other], number):
                pairs.append((pictures_of[other], number))
        labels[look] = groups[number]
    return pairs


def key_of(data: bytes) -> PictureKey:
    """The key of an encoded picture."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    colour = picture.resize((4, 4), Image.Resampling.BOX).tobytes().hex()
    return PictureKey(hashlib.sha256(data).hexdigest(), str(imagehash.phash(picture)), colour)


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def drawn(colour: str = "#c03020", shape: str = "ellipse") -> Image.Image:
    """A shape with a handle on a light ground."""
    picture = Image.new("RGB", (240, 200), "#f4f0e8")
    draw = ImageDraw.Draw(picture)
    getattr(draw, shape)((50, 40, 150, 170), fill=colour, outline="#202020", width=4)
    draw.arc((130, 70, 210, 140), 270, 90, fill=colour, width=12)
    return picture


def made_key(phash: int, colour: bytes, name: int) -> PictureKey:
    """A key with a chosen hash and colour."""
    return PictureKey(f"{name:064x}", f"{phash:016x}", colour.hex())


def random_keys(count: int, seed: int) -> list[PictureKey]:
    """Keys near and far of each other, some of them equal in look or in file."""
    chance = random.Random(seed)
    hashes = [chance.getrandbits(64) for _ in range(3)]
    keys = []
    for _ in range(count):
        phash = chance.choice(hashes)
        for _ in range(chance.randrange(5)):
            phash ^= 1 << chance.randrange(64)
        colour = bytes([chance.randrange(100, 112)] * 24 + [chance.randrange(100, 130)] * 24)
        keys.append(made_key(phash, colour, len(keys)))
    return keys + chance.sample(keys, count // 10)


def is_near(one: PictureKey, other: PictureKey, config: DuplicatesConfig) -> bool:
    """The definition, in plain Python."""
    bits = (int(one.phash, 16) ^ int(other.phash, 16)).bit_count()
    colours = zip(bytes.fromhex(one.colour), bytes.fromhex(other.colour), strict=True)
    difference = sum(abs(a - b) for a, b in colours) / 48
    within = bits <= config.max_hash_distance and difference <= config.max_colour_distance
    return one.sha256 == other.sha256 or within


def connected(count: int, pairs: list[Pair]) -> set[frozenset[int]]:
    """Sets of indices that the pairs connect."""
    sets = [{number} for number in range(count)]
    for one, other in pairs:
        if sets[one] is not sets[other]:
            sets[one] |= sets[other]
            for number in sets[other]:
                sets[number] = sets[one]
    return {frozenset(members) for members in sets}


@pytest.mark.parametrize("hash_distance", [0, 1, 4, 9, 63, 64])
@pytest.mark.parametrize("colour_distance", [0.0, 3.0, 12.0])
def test_pairs_connect_what_is_near(hash_distance: int, colour_distance: float) -> None:
    """The pairs are all near, as few as can be, and connect what the definition connects."""
    config = DuplicatesConfig(max_hash_distance=hash_distance, max_colour_distance=colour_distance)
    keys = random_keys(150, seed=hash_distance)
    pairs = near_pairs(keys, config)
    assert all(is_near(keys[one], keys[other], config) for one, other in pairs)
    every = [
        pair
        for pair in combinations(range(len(keys)), 2)
        if is_near(*map(keys.__getitem__, pair), config)
    ]
    groups = connected(len(keys), every)
    assert 1 <= len(groups) < len(keys)
    assert connected(len(keys), pairs) == groups
    assert len(pairs) == len(keys) - len(groups)


def test_bands_find_all_that_is_near() -> None:
    """Among many hashes, where not all are compared, none that is near is missed."""
    chance = random.Random(1)
    hashes = [chance.getrandbits(64) for _ in range(1000)]
    near = [value ^ sum(1 << bit for bit in chance.sample(range(64), 4)) for value in hashes]
    far = [value ^ sum(1 << bit for bit in chance.sample(range(64), 5)) for value in hashes]
    keys = [made_key(value, bytes(48), name) for name, value in enumerate(hashes + near + far)]
    looks = Looks(keys, DuplicatesConfig())
    for number in range(1000):
        assert set(looks.near(number).tolist()) & {number, number + 1000, number + 2000} == {
            number + 1000
        }


def test_limits_are_inclusive() -> None:
    """A distance that equals the limit still counts as near; the next one does not."""
    config = DuplicatesConfig(max_hash_distance=4, max_colour_distance=12)
    first = made_key(0, bytes([100] * 48), 0)
    at_limit = made_key(0b1111, bytes([112] * 48), 1)
    other_hash = made_key(0b11111 << 20, bytes([100] * 48), 2)
    other_colour = made_key(0, bytes([87] + [88] * 47), 3)
    assert near_pairs([first, at_limit, other_hash, other_colour], config) == [(0, 1)]


def test_same_file_is_the_same_picture_whatever_the_look() -> None:
    """Equal bytes are one picture, even if another version decodes them differently."""
    one, other = made_key(0, bytes(48), 7), made_key(2**64 - 1, bytes([255] * 48), 7)
    assert near_pairs([one, other], DuplicatesConfig()) == [(0, 1)]


def test_no_pictures() -> None:
    """An empty list has no pairs."""
    assert near_pairs([], DuplicatesConfig()) == []


@pytest.mark.parametrize(
    ("form", "options"), [("JPEG", {"quality": 60}), ("WEBP", {"quality": 70}), ("PNG", {})]
)
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_encoded_anew_or_resized_is_near(
    form: str, options: dict[str, object], scale: float
) -> None:
    """The same picture in another format and size is found."""
    small = drawn().resize((int(240 * scale), int(200 * scale)))
    keys = [key_of(encoded(drawn(), "BMP")), key_of(encoded(small, form, **options))]
    assert near_pairs(keys, DuplicatesConfig()) == [(0, 1)]


@pytest.mark.parametrize("other", [drawn("#2040c0"), drawn(shape="rectangle")])
def test_another_colour_or_shape_is_not_near(other: Image.Image) -> None:
    """One shape in two colours, or two shapes in one colour, are two products."""
    keys = [key_of(encoded(drawn())), key_of(encoded(other))]
    assert near_pairs(keys, DuplicatesConfig()) == []


def test_flat_pictures_are_told_apart_by_colour() -> None:
    """Of pictures of one colour the hash says little; those of another colour stay apart."""
    colours = ["#ffffff", "#fefefe", "#c03020", "#204060"]
    keys = [key_of(encoded(Image.new("RGB", (64, 64), colour))) for colour in colours]
    assert near_pairs(keys, DuplicatesConfig(max_hash_distance=64)) == [(0, 1)]


def test_demo_pictures_stay_apart() -> None:
    """The demo's drawings, 40 shapes in 8 colours, are told apart by a strict colour limit."""
    with (DEMO / "metadata.csv").open(encoding="utf-8") as file:
        names = [row["file_name"] for row in csv.DictReader(file)]
    keys = [key_of((DEMO / name).read_bytes()) for name in names]
    assert near_pairs(keys, DuplicatesConfig(max_hash_distance=4, max_colour_distance=4)) == []
    tied = near_pairs(keys, DuplicatesConfig(max_hash_distance=4, max_colour_distance=12))
    assert len(tied) < len(keys) / 5
