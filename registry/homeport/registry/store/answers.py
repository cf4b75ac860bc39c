"""Telling whoever waits how it ended, once, if they still want to know; and waiting for what may be known already."""

from __future__ import annotations

import asyncio

from homeport.client.core.errors import HomeportError
from homeport.registry.core.txn import TxnResult
from homeport.registry.store.contract import Reply


def succeed(reply: Reply, result: TxnResult) -> None:
    if not reply.done():
        reply.set_result(result)


def fail(reply: Reply | asyncio.Future[float], error: HomeportError) -> None:
    if not reply.done():
        reply.set_exception(error)
        if isinstance(reply, asyncio.Future):
            reply.exception()  # who asked may have gone; then nobody need be warned


async def ttl_s(renewed: float | asyncio.Future[float]) -> float:
    """What `lease_renew` returned, once it is known."""
    return await renewed if isinstance(renewed, asyncio.Future) else renewed
