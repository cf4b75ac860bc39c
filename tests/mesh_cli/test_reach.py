"""How long a command waits for a registry: briefly for nobody, longer for one that is there and busy."""

from __future__ import annotations

from typing import Any, cast

import pytest

from homeport.client import Client, Unavailable
from homeport.client.core.limits import CALL_S
from homeport.mesh.commands.running import CONNECT_TIMEOUT_S, reach


class Slow:
    """A client whose first call meets nobody in time."""

    def __init__(self, *, connected: bool) -> None:
        self.connected = connected
        self.waited: list[float] = []

    async def call(self, _request: Any, *, timeout_s: float = CALL_S) -> None:
        self.waited.append(timeout_s)
        if len(self.waited) == 1:
            raise Unavailable("no answer in time")


async def test_one_that_took_the_connection_has_longer() -> None:
    slow = Slow(connected=True)
    await reach(cast("Client", slow))
    assert slow.waited == [CONNECT_TIMEOUT_S, CALL_S]
    assert CALL_S > CONNECT_TIMEOUT_S


async def test_nobody_has_not() -> None:
    slow = Slow(connected=False)
    with pytest.raises(Unavailable):
        await reach(cast("Client", slow))
    assert slow.waited == [CONNECT_TIMEOUT_S]
