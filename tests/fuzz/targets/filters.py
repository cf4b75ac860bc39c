"""Any text is a filter expression, or a mistake told with its column; what is one judges every row, twice alike."""

from __future__ import annotations

import msgspec

from homeport.client.core.errors import InvalidArgument
from homeport.registry.core.filters import Predicate, compiled


class Place(msgspec.Struct, rename="pascal"):
    """A part of a row."""

    address: str = ""
    port: int = 0


class Row(msgspec.Struct, rename="pascal"):
    """A row with every kind of field that rows of lists have."""

    id: str = ""
    port: int = 0
    share: float = 0.0
    enabled: bool = False
    tags: tuple[str, ...] = ()
    meta: dict[str, str] = {}
    places: dict[str, Place] = {}
    checks: tuple[Place, ...] = ()
    parent: Place | None = None


ROWS = (
    Row(),
    Row(
        id="web-1",
        port=80,
        share=0.5,
        enabled=True,
        tags=("blue", "primary"),
        meta={"version": "1.4.2", "": "x"},
        places={"lan": Place("10.0.0.1", 80)},
        checks=(Place("a", 1), Place("b", 2)),
        parent=Place("c", 3),
    ),
)


def _compiled(text: str) -> Predicate | InvalidArgument:
    try:
        return compiled(text, Row)
    except InvalidArgument as error:
        return error


def one(data: bytes) -> None:
    """Run one case."""
    text = data.decode("utf-8", "surrogateescape")
    found = _compiled(text)
    if isinstance(found, InvalidArgument):
        column = found.details.get("column")
        assert isinstance(column, int), found
        assert 1 <= column <= len(text) + 1, (column, text)
        return
    holds = found
    first = [holds(row) for row in ROWS]
    assert all(isinstance(each, bool) for each in first)
    assert [holds(row) for row in ROWS] == first
    negated = compiled(f"not ({text})", Row)
    assert [not each for each in first] == [negated(row) for row in ROWS], text
