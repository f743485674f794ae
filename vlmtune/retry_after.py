"""What a server asks for in its Retry-After header."""

from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def seconds_until(retry_after: str) -> float:
    """The wait that the header asks for, in seconds or as a date; 0 if it asks for none."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    with suppress(TypeError, ValueError, OverflowError):
        return parsedate_to_datetime(retry_after).timestamp() - datetime.now(UTC).timestamp()
    return 0.0
