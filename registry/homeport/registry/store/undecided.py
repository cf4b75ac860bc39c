"""Which keys are written by transactions that a shared store has not decided yet, and who waits for that.

Over a shared store nothing is decided until it is written, so whoever decides on what stands would not see what was
sent a moment before, on the same connection even. They wait here, and go on in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from homeport.client.core.errors import HomeportError
from homeport.registry.core.txn import TxnResult
from homeport.registry.store.answers import fail, succeed
from homeport.registry.store.contract import Reply


class Undecided:
    """Counts transactions under way by the keys that they write, as far as that could be told when they came."""

    __slots__ = ("_under_way", "_waiting")

    def __init__(self) -> None:
        self._under_way: dict[bytes, int] = {}
        self._waiting: dict[bytes, list[asyncio.Future[None]]] = {}

    def track(self, keys: Sequence[bytes], reply: Reply) -> Reply:
        """What hears of the outcome in the place of `reply`, and passes it on."""
        for key in keys:
            self._under_way[key] = self._under_way.get(key, 0) + 1
        return _Tracked(self, keys, reply)

    def until_decided(self, key: bytes) -> asyncio.Future[None] | None:
        """What ends when no transaction that came before writes the key any more; None: none does."""
        if key not in self._under_way:
            return None
        decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(decided)
        return decided

    def decided(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]
                for decided in self._waiting.pop(key, ()):
                    if not decided.done():
                        decided.set_result(None)


class _Tracked:
    """A reply that tells both."""

    __slots__ = ("_keys", "_reply", "_undecided")

    def __init__(self, undecided: Undecided, keys: Sequence[bytes], reply: Reply) -> None:
        self._undecided = undecided
        self._keys = keys
        self._reply = reply

    def done(self) -> bool:
        return False  # whoever asked may have gone, and others wait all the same

    def set_result(self, result: TxnResult, /) -> None:
        self._undecided.decided(self._keys)
        succeed(self._reply, result)

    def set_exception(self, error: HomeportError, /) -> None:
        self._undecided.decided(self._keys)
        fail(self._reply, error)
