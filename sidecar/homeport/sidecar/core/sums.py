"""One report out of those of several workers: what is counted is added, what is the same is kept.

Reports are plain values, as JSON has them. Which numbers are counted is said here, by what they are called, once for
all: `_MOST` and `_SAME` name the exceptions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_MOST: Final = frozenset({"age_s", "revision", "refused_revision"})  # the oldest knowledge, the newest revision
_SAME: Final = frozenset({"weight", "port", "share", "latency_ms", "at", "chance"})
_ALL: Final = frozenset({"known", "live", "available", "draining"})  # yes only if all say so; others if any does
_IDENTITY: Final = (
    ("direction", "service"),
    ("node", "id"),
    ("at", "route"),
    ("at", "destination"),
)  # what tells the entries of a list apart


def added(reports: Sequence[Any], name: str = "") -> Any:
    """Add reports of the same shape; a part that some of them lack is that of the others. `name`: their field's."""
    reports = [report for report in reports if report is not None]
    if not reports:
        return None
    first = reports[0]
    if isinstance(first, bool):
        return all(reports) if name in _ALL else any(reports)
    if isinstance(first, int | float):
        if name in _SAME:
            return first
        return max(reports) if name in _MOST else sum(reports)
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for report in reports for key in report)
        return {key: added([report.get(key) for report in reports], key) for key in keys}
    if isinstance(first, list):
        groups: dict[tuple[object, ...], list[Any]] = {}
        for entry in (entry for report in reports for entry in report):
            groups.setdefault(_identity(entry), []).append(entry)
        return [added(entries) for entries in groups.values()]
    return first


def _identity(entry: Any) -> tuple[object, ...]:
    if isinstance(entry, Mapping):
        for names in _IDENTITY:
            if all(name in entry for name in names):
                return tuple(entry[name] for name in names)
    return (entry,) if not isinstance(entry, Mapping | list) else (repr(entry),)
