"""Who shows the same image or says the same, and which of it ties no rows.

A logo, a size chart, a "no image" placeholder or an "Ask for price" says nothing about a product:
an image or a description that more than `data.duplicates.max_sharing_products` products have
ties no rows.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

KEPT_NEIGHBOURS = 64  # numbers with more neighbours look them up each time


class Likeness:
    """The images of rows, or their descriptions, by number: who has them, which are near.

    Args:
        of_rows: the numbers that each row has, at least 0 and below `count`.
        count: of the different numbers.
        near: a number -> the other numbers near it, some of them repeatedly.

    Attributes:
        of_rows: as given.
        ties: whether a number ties the rows that have it, of shape (count,).
    """

    def __init__(
        self, of_rows: Sequence[Sequence[int]], count: int, near: Callable[[int], "ndarray"]
    ) -> None:
        import numpy

        self.of_rows = of_rows
        self.ties = numpy.ones(count, dtype=bool)
        self._find_near = near
        self._alike: dict[int, ndarray] = {}
        pairs = [(row, number) for row, numbers in enumerate(of_rows) for number in numbers]
        self._rows, self._numbers = numpy.array(pairs, dtype="int32").reshape(-1, 2).T

    def alike(self, number: int) -> "ndarray":
        """A number and all that are near it, ascending, of shape (count,)."""
        import numpy

        if number in self._alike:
            return self._alike[number]
        found = numpy.unique(numpy.append(self._find_near(number), number)).astype("int32")
        if len(found) <= KEPT_NEIGHBOURS:
            self._alike[number] = found
        return found

    def had_by(self, rows: Iterable[int]) -> "ndarray":
        """Whether one of these rows has a number, of shape (count,)."""
        import numpy

        had = numpy.zeros(len(self.ties), dtype=bool)
        for row in rows:
            had[list(self.of_rows[row])] = True
        return had

    def rows_with(self, number: int) -> list[int]:
        """The rows that have a number or one near it, ascending."""
        import numpy

        return numpy.unique(self._rows[numpy.isin(self._numbers, self.alike(number))]).tolist()

    def most_frequent(self, counts: "ndarray", ties: bool, limit: int) -> list[int]:
        """Numbers that most rows have and that tie rows, or do not; of near ones only one.

        Args:
            counts: rows of each number, as `untie_common` counts them.
        """
        import numpy

        candidates = numpy.flatnonzero((self.ties == ties) & (counts > 1))
        order = candidates[numpy.argsort(-counts[candidates], kind="stable")]
        covered = numpy.zeros(len(counts), dtype=bool)
        found: list[int] = []
        for number in order.tolist():
            if len(found) == limit:
                break
            if not covered[number]:
                covered[self.alike(number)] = True
                found.append(number)
        return found

    def untie_common(self, products: Sequence[int], first: int, limit: int) -> "ndarray":
        """What too many products have, or have something near to, ties nothing.

        Args:
            products: number of each row's product, at least 0.
            first: only the rows from here on are counted.
            limit: that many products may share an image or description that ties.

        Returns:
            How many rows have each number or one near it (each once for every such number), of
            shape (count,).
        """
        import numpy

        rows = numpy.zeros(len(self.ties), dtype="int32")
        one = numpy.full(len(self.ties), -1)  # a product that has the number
        several: dict[int, set[int]] = {}  # all of them, where that is not the only one
        for row in range(first, len(self.of_rows)):
            for number in self.of_rows[row]:
                rows[number] += 1
                if one[number] < 0:
                    one[number] = products[row]
                elif one[number] != products[row]:
                    several.setdefault(number, {int(one[number])}).add(products[row])
        has_several = numpy.zeros(len(self.ties), dtype=bool)
        has_several[list(several)] = True
        totals = rows.copy()
        for number in range(len(self.ties)):
            alike = self.alike(number)
            totals[number] = rows[alike].sum()
            if totals[number] > limit:
                found = set(numpy.unique(one[alike]).tolist()) - {-1}
                for other in alike[has_several[alike]].tolist() if len(found) <= limit else []:
                    found |= several[other]
                self.ties[number] = len(found) <= limit
        return totals

    def untie_across(self, train: Iterable[int], held_out: Iterable[int]) -> None:
        """What these held-out rows share with these train rows ties nothing."""
        of_train = self.had_by(train)
        for number in {number for row in held_out for number in self.of_rows[row]}:
            self.ties[number] &= not of_train[self.alike(number)].any()
