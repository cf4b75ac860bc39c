"""A DNS front on real sockets, with instances put straight into its registry, and dnspython as the one that asks."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncquery
import dns.message
import dns.rdatatype
import pytest

from homeport.client.core.messages import Deregister, Register
from homeport.client.core.model import Instance
from homeport.client.core.wire import encode
from homeport.registry import DnsSettings, Registry
from homeport.registry.core import keys
from homeport.registry.core.entries import CheckRecord
from homeport.registry.core.txn import Put, Txn
from homeport.registry.fronts.dns.front import DnsFront
from homeport.registry.peers import NoOutlet, Peer

SEED = 20_260_225
DEADLINE_S = 30.0


class Asker:
    """`await dns("orders.service.homeport", "A")`: the whole answer, read as strictly as dnspython reads."""

    def __init__(self, registry: Registry, front: DnsFront, at: str) -> None:
        self.registry = registry
        self.front = front
        self.host, _, port = at.rpartition(":")
        self.port = int(port)

    async def __call__(
        self, name: str, kind: str = "A", *, tcp: bool = False, edns: int | bool = False, **more: Any
    ) -> dns.message.Message:
        query = dns.message.make_query(name, kind, use_edns=edns, **more)
        return await self.send(query, tcp=tcp)

    async def send(self, query: dns.message.Message, *, tcp: bool = False) -> dns.message.Message:
        ask = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
        return await ask(query, self.host, port=self.port, timeout=DEADLINE_S)

    async def register(self, service: str, id_: str, address: str, port: int = 80, **fields: Any) -> None:
        one = Instance(service=service, id=id_, address=address, port=port, **fields)
        await self.registry.operations.registrations.register(Register(instance=one), Peer(NoOutlet()))

    async def deregister(self, id_: str) -> None:
        async with self.registry.client() as client:
            await client.call(Deregister(id=id_))

    async def set_status(self, id_: str, status: Any) -> None:
        put = Put(keys.check(self.registry.node, id_, "said"), encode(CheckRecord(status)))
        await self.registry.store.commit(Txn(then=(put,)))


@asynccontextmanager
async def asker(settings: DnsSettings | None = None, **limits: Any) -> AsyncIterator[Asker]:
    async with Registry(node="home", rng=random.Random(SEED)) as registry:
        front = DnsFront(registry.operations, settings or DnsSettings(), rng=random.Random(SEED), **limits)
        registry._dns = front  # the one that the registry tells of changes, with the limits of this test
        at = await front.listen("127.0.0.1:0")
        yield Asker(registry, front, at)


MakeDns = Callable[..., Any]


@pytest.fixture
def make_dns() -> MakeDns:
    """`async with make_dns(settings, **limits) as dns`."""
    print(f"seed {SEED}")
    return asker


@pytest.fixture
async def dns_(make_dns: MakeDns) -> AsyncIterator[Asker]:
    """A front with everything as it is by default."""
    async with make_dns() as found:
        yield found


def texts(answer: dns.message.Message, section: str = "answer") -> list[str]:
    """A section's records as "NAME TYPE DATA", sorted."""
    return sorted(
        f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {rdata}"
        for rrset in getattr(answer, section)
        for rdata in rrset
    )


Texts = Callable[..., list[str]]


@pytest.fixture
def rows() -> Texts:
    return texts
