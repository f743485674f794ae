"""Which pictures are the same one, or nearly so: encoded anew, resized, lightly retouched."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from vlmtune.config.data import DuplicatesConfig

if TYPE_CHECKING:
    from numpy import ndarray

HASH_BITS = 64
COLOUR_BYTES = 48  # RGB of 4 x 4 points


@dataclass(frozen=True, slots=True)
class PictureKey:
    """What pictures are compared by.

    Attributes:
        sha256: of the encoded bytes, 64 hex digits.
        phash: 64-bit perceptual hash, 16 hex digits.
        colour: RGB of a 4 x 4 thumbnail, row by row, 96 hex digits.
    """

    sha256: str
    phash: str
    colour: str

    @property
    def look(self) -> tuple[str, str]:
        """Perceptual hash and colour: what of the picture the distances are measured on."""
        return self.phash, self.colour


class Looks:
    """The different looks of many pictures, and which of them are near each other.

    Two looks are near if few enough bits of their hashes differ and their colours are close. The
    hash of a picture of one colour says little (it is made of rounding errors); there as
    everywhere both distances decide.

    Args:
        pictures: in any order; equal looks are counted once.
        config: how far two near looks may differ.

    Attributes:
        numbers: look -> its number, from 0 in the order of first appearance.
    """

    def __init__(self, pictures: Sequence[PictureKey], config: DuplicatesConfig) -> None:
        import numpy

        self.numbers: dict[tuple[str, str], int] = {}
        for picture in pictures:
            self.numbers.setdefault(picture.look, len(self.numbers))
        hashes = [int(phash, 16) for phash, _ in self.numbers]
        colours = bytes.fromhex("".join(colour for _, colour in self.numbers))
        self._hashes = numpy.array(hashes, dtype="uint64")
        self._colours = numpy.frombuffer(colours, dtype="uint8").reshape(-1, COLOUR_BYTES)
        self._brightness = self._colours.sum(axis=1, dtype="int32")
        self._all = numpy.arange(len(hashes))
        self._config = config
        # Of two hashes that differ in d bits, cut into d + 1 bands, one band at least is equal.
        cuts = numpy.linspace(0, HASH_BITS, min(config.max_hash_distance + 1, HASH_BITS) + 1)
        edges = cuts.astype(int).tolist()
        self._bands = [_Band(self._hashes, low, high) for low, high in pairwise(edges)]

    def near(self, look: int) -> "ndarray":
        """Numbers of the other looks near this one, in any order, some of them repeatedly.

        Returns:
            Integers of shape (count,).
        """
        import numpy

        found = self._candidates(look)
        bits = numpy.bitwise_count(self._hashes[found] ^ self._hashes[look])
        found = found[(bits <= self._config.max_hash_distance) & (found != look)]
        furthest = self._config.max_colour_distance * COLOUR_BYTES
        # Colours are no closer than their sums are, which are compared much faster.
        found = found[abs(self._brightness[found] - self._brightness[look]) <= furthest]
        here, there = self._colours[look], self._colours[found]
        differences = numpy.maximum(here, there) - numpy.minimum(here, there)
        ones = numpy.ones(COLOUR_BYTES, dtype="float32")  # a product is faster than a sum
        return found[differences.astype("float32") @ ones <= furthest]

    def _candidates(self, look: int) -> "ndarray":
        """Looks that share a band with this one; all looks where that is no saving."""
        import numpy

        shared = [band.shared_with(look) for band in self._bands]
        if sum(map(len, shared)) >= len(self._all):
            return self._all
        return numpy.concatenate(shared)


class _Band:
    """The bits `low` to `high` of all hashes, sorted, so that equal ones stand together."""

    def __init__(self, hashes: "ndarray", low: int, high: int) -> None:
        import numpy

        values = hashes >> numpy.uint64(low) & numpy.uint64(2 ** (high - low) - 1)
        self._order = numpy.argsort(values, kind="stable")
        ordered = values[self._order]
        self._starts = numpy.searchsorted(ordered, values, side="left")
        self._ends = numpy.searchsorted(ordered, values, side="right")

    def shared_with(self, look: int) -> "ndarray":
        """The looks whose bits here are those of this look, itself among them."""
        return self._order[self._starts[look] : self._ends[look]]


def one_of_each(numbers: "ndarray", labels: "ndarray") -> list[int]:
    """Of these numbers one for each different label, where `labels[number]` is its label."""
    import numpy

    _, positions = numpy.unique(labels[numbers], return_index=True)
    return [int(number) for number in numbers[positions]]
