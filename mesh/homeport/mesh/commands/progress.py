"""How long work shows that it goes on: a bar on standard error if that is a terminal, else nothing.

rich is loaded only when a bar is drawn; it draws from a thread of its own, so the work need not stop for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal


@contextmanager
def progress(what: str, total: int | None, unit: Literal["bytes", "keys", "steps"]) -> Iterator[Callable[[int], None]]:
    """Show a bar until the block ends.

    Args:
        what: the words before the bar.
        total: how many units there will be; None if nobody knows.

    Yields:
        What to call with the number of units done so far.
    """
    if not sys.stderr.isatty():
        yield lambda _done: None
        return

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    sizes: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn(), TextColumn(unit)]
    )
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), *sizes, TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
