"""Which descriptions are the same one, or nearly so."""

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from vlmtune.config.data import DuplicatesConfig

if TYPE_CHECKING:
    from datasketch import MinHash
    from numpy import ndarray

SHINGLE = 5  # characters: scripts without spaces are compared like all others
SCHEME: Literal["affine32"] = "affine32"  # how datasketch permutes the hashes
HASHES = 128  # of a signature: the estimated similarity is off by 0.04 on average at 0.7


@dataclass(frozen=True, slots=True)
class DescriptionKey:
    """What descriptions are compared by.

    Attributes:
        digest: 16 bytes; those of equal normalised descriptions are equal.
        signature: MinHash of the normalised description, 512 bytes; empty where only equal
            descriptions count.
    """

    digest: bytes
    signature: bytes = b""


def normalise_description(text: str) -> str:
    """A description as it is compared: in Unicode's NFKC, casefolded, and every run of white
    space, punctuation and control characters made one space. Letters, marks, digits and symbols
    (as in "5 €") stay. A text that has none of these is only put into NFKC and casefolded."""
    text = unicodedata.normalize("NFKC", text).casefold()
    words = re.sub(r"[^\w\s]|_", lambda match: _kept(match[0]), text).split()
    return " ".join(words) or text.strip()


def description_key(text: str, config: DuplicatesConfig) -> DescriptionKey | None:
    """The key of a description; None if it is empty."""
    normalised = normalise_description(text)
    if not normalised:
        return None
    digest = hashlib.blake2b(normalised.encode(errors="surrogatepass"), digest_size=16).digest()
    similar = config.min_description_similarity is not None
    return DescriptionKey(digest, _signature(normalised) if similar else b"")


class Descriptions:
    """The different descriptions of many rows, and which of them are near each other.

    Two descriptions are near if the Jaccard similarity of their sets of five-character pieces, as
    MinHash estimates it, is at least `min_description_similarity`; none are if that is null.

    Args:
        keys: in any order; equal digests are counted once.
        config: how alike two near descriptions are.

    Attributes:
        numbers: digest -> its number, from 0 in the order of first appearance.
    """

    def __init__(self, keys: Iterable[DescriptionKey], config: DuplicatesConfig) -> None:
        self.numbers: dict[bytes, int] = {}
        self._signatures: list[bytes] = []
        self._threshold = config.min_description_similarity
        for key in keys:
            if self.numbers.setdefault(key.digest, len(self.numbers)) == len(self._signatures):
                self._signatures.append(key.signature)
        if self._threshold is not None:
            from datasketch import MinHashLSH

            # Rather too many candidates than too few: they are compared one by one.
            self._index = MinHashLSH(self._threshold, HASHES, weights=(0.1, 0.9))
            for number, signature in enumerate(self._signatures):
                self._index.insert(number, _minhash(signature), check_duplication=False)

    def near(self, number: int) -> "ndarray":
        """Numbers of the other descriptions near this one, ascending, of shape (count,)."""
        import numpy

        if self._threshold is None:
            return numpy.empty(0, dtype=int)
        here = _minhash(self._signatures[number])
        found = [
            other
            for other in sorted(self._index.query(here))
            if other != number
            and here.jaccard(_minhash(self._signatures[other])) >= self._threshold
        ]
        return numpy.array(found, dtype=int)


@cache
def _kept(character: str) -> str:
    return " " if unicodedata.category(character)[0] in "PZC" else character


def _signature(normalised: str) -> bytes:
    from datasketch import MinHash

    pieces = range(max(1, len(normalised) - SHINGLE + 1))
    shingles = {normalised[at : at + SHINGLE].encode(errors="surrogatepass") for at in pieces}
    minhash = MinHash(HASHES, hashfunc=zlib.crc32, scheme=SCHEME)
    minhash.update_batch(sorted(shingles))
    return minhash.hashvalues.astype("uint32").tobytes()


def _minhash(signature: bytes) -> "MinHash":
    import numpy
    from datasketch import MinHash

    values = numpy.frombuffer(signature, dtype="uint32")
    return MinHash(HASHES, hashfunc=zlib.crc32, scheme=SCHEME, hashvalues=values)
