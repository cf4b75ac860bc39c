"""Half-open intervals by the keys they contain: a sorted list with an implicit tree of the largest end below each node.

Finding the intervals that contain a key costs the logarithm of their number, and their own. The tree is an array that
is built anew when it is first asked after a change, which suits watches: they change rarely, and are asked by every
write.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_ENDLESS: Final = (1, b"")  # sorts behind every (0, end)
_NOTHING: Final = (-1, b"")


class Intervals(Generic[T]):
    """Items on `[start, end)`; an end of b"" means that there is none."""

    __slots__ = ("_items", "_size", "_starts", "_tree")

    def __init__(self) -> None:
        self._starts: list[bytes] = []  # of _items
        self._items: list[tuple[bytes, tuple[int, bytes], T]] = []  # by start
        self._tree: list[tuple[int, bytes]] = []  # a heap-shaped array of largest ends; empty after a change
        self._size = 0  # of its lowest row

    def __len__(self) -> int:
        return len(self._items)

    def add(self, start: bytes, end: bytes, item: T) -> None:
        """Put an item on an interval."""
        at = bisect_right(self._starts, start)
        insort(self._starts, start)
        self._items.insert(at, (start, (0, end) if end else _ENDLESS, item))
        self._tree.clear()

    def remove(self, start: bytes, item: T) -> None:
        """Take away the item that was put on an interval with this start."""
        at = bisect_left(self._starts, start)
        while self._items[at][2] is not item:
            at += 1
        del self._starts[at], self._items[at]
        self._tree.clear()

    def containing(self, key: bytes) -> list[T]:
        """The items whose interval contains the key."""
        stop = bisect_right(self._starts, key)
        if not stop:
            return []
        if not self._tree:
            self._build()
        found: list[T] = []
        self._collect(1, 0, self._size, stop, (0, key), found)
        return found

    def _build(self) -> None:
        self._size = 1 << (len(self._items) - 1).bit_length()
        ends = [end for _, end, _ in self._items]
        tree = [_NOTHING] * self._size + ends + [_NOTHING] * (self._size - len(ends))
        for node in range(self._size - 1, 0, -1):
            tree[node] = max(tree[2 * node], tree[2 * node + 1])
        self._tree = tree

    def _collect(self, node: int, first: int, size: int, stop: int, key: tuple[int, bytes], found: list[T]) -> None:
        """Go down into the `size` items from `first` on, where one can end behind the key and starts before `stop`."""
        if first >= stop or self._tree[node] <= key:
            return
        if size == 1:
            found.append(self._items[first][2])
            return
        half = size // 2
        self._collect(2 * node, first, half, stop, key, found)
        self._collect(2 * node + 1, first + half, half, stop, key, found)
