"""Reports for people: plain values as indented text, lists of alike things as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def plain_text(value: Any, indent: str = "") -> str:
    """Render what JSON could hold; what a table has no room for follows below it."""
    if isinstance(value, Mapping):
        return "".join(_field(key, each, indent) for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _listed(value, indent)
    return f"{indent}{_word(value)}\n"


def _field(key: str, value: Any, indent: str) -> str:
    if isinstance(value, Mapping | list):
        return f"{indent}{key}:\n{plain_text(value, indent + '  ')}" if value else f"{indent}{key}: none\n"
    return f"{indent}{key}: {_word(value)}\n"


def _listed(values: Sequence[Any], indent: str) -> str:
    if not all(isinstance(value, Mapping) for value in values):
        return "".join(plain_text(value, indent) for value in values)
    if any(isinstance(each, Mapping | list) for value in values for each in value.values()):
        return "\n".join(plain_text(value, indent) for value in values)
    columns = list(dict.fromkeys(key for value in values for key in value))
    rows = [columns, *([_word(value.get(column)) for column in columns] for value in values)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
    return "".join(
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        for row in rows
    )


def _word(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
