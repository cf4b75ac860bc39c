"""How listings are printed: tables for people, JSON for programs. rich is loaded only when a table is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

if TYPE_CHECKING:
    from rich.table import Table

_PIPE_WIDTH: Final = 500  # a pipe has no edge to wrap at, and programs read whole lines


def print_json(value: Any) -> None:
    """One JSON document, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_json_line(value: Any) -> None:
    """One JSON document on a line of its own, as part of a stream."""
    click.echo(msgspec.json.encode(value))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """An aligned table; coloured on a terminal only."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_WIDTH)
    console.print(table(columns, rows, terminal=console.is_terminal))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, terminal: bool) -> Table:
    """The table itself, for a terminal or a pipe."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, no_wrap=not terminal)
    for row in rows:
        drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return drawn


_STYLES: Final = {
    "passing": "green",
    "up": "green",
    "warning": "yellow",
    "draining": "yellow",
    "critical": "red",
    "ejected": "red",
    "suspect": "yellow",
    "maintenance": "magenta",
}
