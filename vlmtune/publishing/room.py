"""Room on the disk for what a push needs: the files laid out, and downloaded back."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from vlmtune.errors import UserError
from vlmtune.publishing.patience import cause_of

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def room_for(purpose: str, size: int) -> Iterator[None]:
    """Say what to do where the folder for temporary files takes no more.

    Args:
        purpose: what it is for, as in "no room to ...".
        size: bytes that are needed.

    Raises:
        UserError: there is no room.
    """
    try:
        yield
    except OSError as error:
        if getattr(cause_of(error), "errno", None) not in NO_ROOM:
            raise
        raise UserError(
            f"{tempfile.gettempdir()} has no room to {purpose} ({size / 1e9:.1f} GB), so nothing "
            "is published under this version.",
            "Free space there or name another folder in TMPDIR, then run the same command again.",
        ) from None
