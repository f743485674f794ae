"""Which rows go into which pack: balanced, the same in every run, and known before training."""

import heapq
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


def balance(tokens: Sequence[int], packs: int) -> list[list[int]]:
    """Split rows into packs of equally many rows and nearly equally many tokens.

    Longest first, each row into the pack with the fewest tokens that still has room (Graham's
    LPT rule with a limit on rows).

    Args:
        tokens: of each row.
        packs: how many; the last ones have fewer rows where the rows do not divide evenly.

    Returns:
        Positions in `tokens`, pack by pack. Full packs come first, so that whoever cuts the
        concatenated list into batches of the full size gets just these packs.
    """
    size = -(-len(tokens) // packs)
    room = [max(0, min(size, len(tokens) - size * pack)) for pack in range(packs)]
    members: list[list[int]] = [[] for _ in range(packs)]
    heap = [(0, pack) for pack in range(packs) if room[pack]]
    for row in sorted(range(len(tokens)), key=lambda row: (-tokens[row], row)):
        filled, pack = heapq.heappop(heap)
        members[pack].append(row)
        if len(members[pack]) < room[pack]:
            heapq.heappush(heap, (filled + tokens[row], pack))
    return [sorted(pack) for pack in members if pack]


class PackSampler(Sampler[int]):
    """Rows in random order, regrouped within each optimizer step so that its packs are balanced.

    The Trainer cuts the order into batches of `rows_per_pack` and deals them out to its ranks, so
    accumulation, resuming and several ranks are its own.

    Args:
        tokens: of each row.
        rows_per_pack: rows in a batch of one rank.
        packs_per_step: of all ranks together.
        seed: of the order; epoch e has the order of seed + e.
    """

    def __init__(
        self, tokens: Sequence[int], rows_per_pack: int, packs_per_step: int, seed: int
    ) -> None:
        self.tokens = list(tokens)
        self.rows_per_pack = rows_per_pack
        self.rows_per_step = rows_per_pack * packs_per_step
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[int]:
        for pack in self.packs(self.epoch):
            yield from pack

    def packs(self, epoch: int) -> Iterator[list[int]]:
        """The rows of each pack of an epoch, in the order of training."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(len(self.tokens), generator=generator).tolist()
        for start in range(0, len(order), self.rows_per_step):
            rows = order[start : start + self.rows_per_step]
            count = -(-len(rows) // self.rows_per_pack)
            if len(rows) == count * self.rows_per_pack:
                packs = balance([self.tokens[row] for row in rows], count)
            else:  # the rest of an epoch: cut as it lies, the last pack is smaller
                size = self.rows_per_pack
                packs = [
                    list(range(at, min(at + size, len(rows)))) for at in range(0, len(rows), size)
                ]
            for pack in packs:
                yield [rows[position] for position in pack]

    def largest_pack(self, epochs: int) -> int:
        """Tokens of the largest pack in the first epochs."""
        return max(
            sum(self.tokens[row] for row in pack)
            for epoch in range(epochs)
            for pack in self.packs(epoch)
        )


def fewest_packs(
    tokens: Sequence[int], rows_per_step: int, limit: int, ranks: int, seed: int, epochs: int
) -> int:
    """How many packs a rank needs in each step so that no pack of the whole training is larger
    than the limit: the fewest, because larger packs train faster.

    Args:
        tokens: of each row.
        rows_per_step: of one rank.
        limit: tokens in a pack.

    Raises:
        ValueError: a single row is larger than the limit.
    """
    if max(tokens) > limit:
        raise ValueError(f"a row of {max(tokens)} tokens is larger than a pack of {limit}")
    for packs in range(1, rows_per_step + 1):
        if rows_per_step % packs:
            continue
        sampler = PackSampler(tokens, rows_per_step // packs, packs * ranks, seed)
        if sampler.largest_pack(epochs) <= limit:
            return packs
    raise AssertionError("packs of one row fit")


def rows_that_fit(tokens: Sequence[int], limit: int, at_most: int) -> int:
    """Rows in a pack that is cut from the rows as they lie, at most so many, within the limit."""
    for rows in range(at_most, 1, -1):
        sums = (sum(tokens[at : at + rows]) for at in range(0, len(tokens), rows))
        if max(sums, default=0) <= limit:
            return rows
    return 1
