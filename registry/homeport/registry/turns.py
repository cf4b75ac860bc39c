"""Very many things seen to some at a time, so that none of the loop's turns is long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class InTurns(Generic[T]):
    """Does something to each of very many things, a bounded number in each turn of the loop.

    Args:
        do: what is done; must not raise.
        at_once: to how many in one turn.
        done: called when all had their turn.
    """

    __slots__ = ("_at_once", "_do", "_done", "_next", "_things")

    def __init__(self, do: Callable[[T], None], at_once: int, done: Callable[[], None] = lambda: None) -> None:
        self._do = do
        self._at_once = at_once
        self._done = done
        self._things: Iterator[T] = iter(())
        self._next: asyncio.Handle | None = None

    @property
    def under_way(self) -> bool:
        return self._next is not None

    def begin(self, things: Iterable[T]) -> None:
        """See to these, the first of them now; what is left of those before is forgotten."""
        self.stop()
        self._things = iter(things)
        self._turn()

    def stop(self) -> None:
        """Forget what is left."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _turn(self) -> None:
        self._next = None
        count = 0
        for thing in islice(self._things, self._at_once):
            self._do(thing)
            count += 1
        if count == self._at_once:
            self._next = asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._done()
