"""A site: instances that stay registered, each by the registration that a service would use.

`python -m benchmarks.load.site PLAN` (JSON); once a second a line of JSON on stdout says how things stand. It ends
without a word to the registry when it is killed.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from benchmarks.contenders.homeport import example_instances
from homeport.client import Client
from homeport.client.registration import Registration

_AT_ONCE: Final = 64  # registrations under way
OF_SERVICE: Final = 3
_SAY_S: Final = 1.0


class Plan(msgspec.Struct, frozen=True):
    """Who registers what: `instances` from service number `first` on, dealt out to so many clients.

    Client `n` begins at address `n` of them, modulo their number.
    """

    addresses: list[str]
    first: int
    instances: int
    ttl_s: float
    clients: int


class Standing(msgspec.Struct, frozen=True):
    """How things stand. `started`: have been registered once; `registered`: are so now, as far as their clients know.

    `links` counts the connections that clients have had.
    """

    started: int
    registered: int
    links: int


def standing(logs: Sequence[Path]) -> Standing:
    """What the processes of a site have said last, together."""
    said = [_last(log) for log in logs]
    return Standing(*(sum(figures) for figures in zip(*map(msgspec.structs.astuple, said), strict=True)))


def _last(log: Path) -> Standing:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    whole = [line for line in lines if line.startswith("{") and line.endswith("}")]
    return msgspec.json.decode(whole[-1], type=Standing) if whole else Standing(0, 0, 0)


async def _run(plan: Plan) -> None:
    registrations: list[Registration] = []
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client(*_turned(plan.addresses, number))) for number in range(plan.clients)
        ]
        services = -(-plan.instances // OF_SERVICE)
        wanted = enumerate(example_instances(services, OF_SERVICE, first=plan.first)[: plan.instances])

        async def register() -> None:
            for number, one in wanted:
                registration = clients[number % plan.clients].register(
                    one.service,
                    port=one.port,
                    id=one.id,
                    address=one.address,
                    node=one.node,
                    tags=one.tags,
                    meta=one.meta,
                    zone=one.zone,
                    version=one.version,
                    ttl_s=plan.ttl_s,
                )
                await registration.start()
                registrations.append(registration)

        saying = asyncio.create_task(_say(clients, registrations))
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(register())
        gc.freeze()  # what stands, stands until the end
        await saying


async def _say(clients: list[Client], registrations: list[Registration]) -> None:
    while True:
        now = Standing(
            len(registrations),
            sum(one.registered for one in registrations),
            sum(client.link_epoch for client in clients),
        )
        print(msgspec.json.encode(now).decode(), flush=True)
        await asyncio.sleep(_SAY_S)


def _turned(addresses: Sequence[str], number: int) -> list[str]:
    turn = number % len(addresses)
    return [*addresses[turn:], *addresses[:turn]]


if __name__ == "__main__":
    uvloop.run(_run(msgspec.json.decode(sys.argv[1], type=Plan)))
