"""A progress bar with rows per second on a terminal; in a log file a line now and then."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0


class RowsPerSecond(ProgressColumn):
    """How fast it goes."""

    def render(self, task: Task) -> Text:
        """Called by rich for each refresh."""
        return Text(f"{task.speed or 0:,.1f} rows/s")


@contextmanager
def rows_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of so many rows are done; the block calls the function with each few."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RowsPerSecond(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    start = last_line = time.monotonic()
    done = 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total)

        def advance(rows: int) -> None:
            nonlocal done, last_line
            done += rows
            progress.advance(task, rows)
            now = time.monotonic()
            if console.quiet and now - last_line >= SECONDS_BETWEEN_LINES:
                last_line = now
                speed = done / (now - start)
                logger.info("%s: %d of %d rows, %.1f rows/s", description, done, total, speed)

        yield advance
