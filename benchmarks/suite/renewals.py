"""How many leases can be kept alive? A renewal a call, beside etcd's keep-alive stream as its clients use it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.case import Case, Contender, Measure, Scale
from benchmarks.contenders import etcd, homeport
from benchmarks.load import driver, protobuf
from benchmarks.load.plan import ClosedLoop, GrpcCalls, RpcCalls
from benchmarks.load.rpc import rpc_body
from benchmarks.stage import Stage
from homeport.client import Client
from homeport.client.core.messages import LeaseGrant, Renew

_CONNECTIONS: Final = 64
_DEPTH: Final = 16
_LEASES: Final = 1000
_TTL_S: Final = 3600  # none ends while it is measured


def cases(scale: Scale) -> tuple[Case, ...]:
    """One load: renewals and nothing else."""

    @contextmanager
    def ours(stage: Stage) -> Iterator[Measure]:
        registry = homeport.serve(stage)
        with registry.server:
            leases = asyncio.run(_granted(registry.rpc_port))
            plan = ClosedLoop(
                port=registry.rpc_port,
                connections=_CONNECTIONS,
                depth=_DEPTH,
                calls=RpcCalls([rpc_body(Renew(leases=(lease,))) for lease in leases]),
                duration_s=scale.turn_s,
            )
            yield lambda: driver.closed_loop(plan, stage.generators, [registry.server.pid])

    @contextmanager
    def peer(stage: Stage) -> Iterator[Measure]:
        running = etcd.serve(stage, stage.new_folder("etcd"))
        with running.server:
            leases = range(1, _LEASES + 1)
            grants = [protobuf.lease_grant_request(lease, _TTL_S) for lease in leases]
            etcd.call(stage, running, protobuf.LEASE_GRANT, grants)
            plan = ClosedLoop(
                port=running.port,
                connections=_CONNECTIONS,
                depth=_DEPTH,
                calls=GrpcCalls(
                    protobuf.LEASE_KEEP_ALIVE,
                    [protobuf.lease_keep_alive_request(lease) for lease in leases],
                    streaming=True,
                ),
                duration_s=scale.turn_s,
            )
            yield lambda: driver.closed_loop(plan, stage.generators, [running.server.pid])

    return (
        Case(
            "renewals",
            "how many leases a second can be renewed, one by one?",
            f"{_LEASES} leases, {_CONNECTIONS} connections with {_DEPTH} renewals in flight",
            "homeport",
            (
                Contender("homeport", "homeport serve, in memory, `renew` of one lease a call", ours),
                Contender("etcd", f"{etcd.ABOUT}; one LeaseKeepAlive stream a connection", peer, etcd.missing()),
            ),
        ),
    )


async def _granted(port: int) -> list[int]:
    async with Client(f"127.0.0.1:{port}", name="benchmark") as client:
        return [(await client.call(LeaseGrant(ttl_s=_TTL_S))).lease for _ in range(_LEASES)]
