"""How listings are printed: tables for people, JSON for programs. rich is loaded only when a table is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import click
import msgspec

_PIPE_WIDTH: Final = 500  # a pipe has no edge to wrap at, and programs read whole lines


def print_json(value: Any) -> None:
    """One JSON document, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_json_line(value: Any) -> None:
    """One JSON document on a line of its own, as part of a stream."""
    click.echo(msgspec.json.encode(value))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """An aligned table; coloured on a terminal only."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_WIDTH)
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=not console.is_terminal)
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    console.print(table)


_STYLES: Final = {
    "passing": "green",
    "up": "green",
    "warning": "yellow",
    "draining": "yellow",
    "critical": "red",
    "maintenance": "magenta",
}
