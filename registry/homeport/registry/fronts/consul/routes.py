"""From a path, as it came, to the rows of the table that it is for."""

from __future__ import annotations

import msgspec

from homeport.registry.fronts.consul.calls import Endpoint


class Match(msgspec.Struct, frozen=True):
    """The rows of a path by method, and what stood in place of its variable, still encoded."""

    rows: dict[str, Endpoint]
    variable: str


class Routes:
    """Finds the rows of a path: an exact one first, else the one with the longest beginning, then the longest end."""

    def __init__(self, table: tuple[Endpoint, ...]) -> None:
        self._exact: dict[str, dict[str, Endpoint]] = {}
        self._beginnings: dict[str, dict[str, dict[str, Endpoint]]] = {}
        for row in table:
            beginning, brace, rest = row.path.partition("{")
            if brace:
                ends = self._beginnings.setdefault(beginning, {})
                rows = ends.setdefault(rest.partition("}")[2], {})
            else:
                rows = self._exact.setdefault(beginning, {})
            assert row.method not in rows, f"{row.name} stands twice in the table"
            rows[row.method] = row
        for beginning, ends in self._beginnings.items():
            self._beginnings[beginning] = dict(sorted(ends.items(), key=lambda end: -len(end[0])))
        self._levels_max = max((beginning.count("/") for beginning in self._beginnings), default=0)

    def match(self, path: str) -> Match | None:
        """Find the rows of a path as it came, nothing decoded or cleaned up in it: a key may hold what it likes."""
        rows = self._exact.get(path)
        if rows is not None:
            return Match(rows, "")
        found: Match | None = None
        at = 0
        for _ in range(self._levels_max):
            at = path.find("/", at) + 1
            if at == 0:
                break
            for end, rows in self._beginnings.get(path[:at], {}).items():
                if path.endswith(end):
                    found = Match(rows, path[at : len(path) - len(end)])
                    break
        return found
