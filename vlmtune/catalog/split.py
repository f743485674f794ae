"""Which rows are held out: decided by a hash, so that it never depends on the row order."""

import hashlib

from vlmtune.catalog.catalog import ROW_ID
from vlmtune.config.data import HeldOutConfig
from vlmtune.errors import UserError


def is_held_out(key: str, fraction: float) -> bool:
    """Whether the group with this key is held out.

    The first 8 bytes of the key's SHA-256, read as a number in [0, 1), are compared with the
    fraction: a row keeps its side whatever other rows come and go.
    """
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return position < fraction


def split_rows(keys: list[str], config: HeldOutConfig) -> tuple[list[int], list[int]]:
    """Row numbers for training and row numbers held out, each in the catalog's order.

    Args:
        keys: of each row the value of the field `held_out.by`, or its row id.

    Raises:
        UserError: one of the sides would be empty.
    """
    held_out = [row for row, key in enumerate(keys) if is_held_out(key, config.fraction)]
    train = [row for row, key in enumerate(keys) if not is_held_out(key, config.fraction)]
    if not train or not held_out:
        side = "held-out" if train else "training"
        raise UserError(
            f"the {side} split would be empty: {len(set(keys))} different values of "
            f"{config.by or ROW_ID!r} and data.held_out.fraction = {config.fraction}.",
            f"{'Raise' if train else 'Lower'} data.held_out.fraction, or add rows.",
        )
    return train, held_out
