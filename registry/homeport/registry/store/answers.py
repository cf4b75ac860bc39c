"""Telling whoever waits for a transaction how it ended, once, and if they still want to know."""

from __future__ import annotations

import asyncio

from homeport.client.core.errors import HomeportError
from homeport.registry.core.txn import TxnResult
from homeport.registry.store.contract import Reply


def succeed(reply: Reply, result: TxnResult) -> None:
    if not reply.done():
        reply.set_result(result)


def fail(reply: Reply, error: HomeportError) -> None:
    if not reply.done():
        reply.set_exception(error)
        if isinstance(reply, asyncio.Future):
            reply.exception()  # who asked may have gone; then nobody need be warned
