"""A fault between hosts, as the ordered pairs of addresses that it holds for."""

from __future__ import annotations

ANY = "*"
"""Stands for every other host in a pair."""


class Pairs:
    """The pairs that one kind of fault holds for now."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], None] = {}

    def add(self, a: str, b: str) -> None:
        """Let it hold from `a` to `b`; either may be `ANY`, which never means the host itself."""
        self._pairs[a, b] = None

    def remove(self, a: str | None, b: str | None) -> None:
        """End it between two hosts; without `b`, wherever `a` was named; without both, everywhere."""
        for pair in list(self._pairs):
            if a is None or (a in pair and (b is None or b in pair)):
                del self._pairs[pair]

    def holds(self, a: str, b: str) -> bool:
        """Whether it holds from `a` to `b`."""
        pairs = self._pairs
        return bool(pairs) and ((a, b) in pairs or (a != b and ((a, ANY) in pairs or (ANY, b) in pairs)))
