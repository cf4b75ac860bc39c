"""Instances of services: the application, its sidecar's inbound, its client and its registration, on one host.

An instance lives as `homeport run` lets one live: registered when it starts, drained and deregistered when it is told
to stop, by the sidecar's own `serve_app`.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, cast

from homeport.client import Check, Instance, Registration
from homeport.client.core.errors import HomeportError
from homeport.mesh.simulation.app import App
from homeport.mesh.simulation.world import ObservedClient, Party, World
from homeport.sidecar import Sidecar

if TYPE_CHECKING:
    import socket

AGAIN_S = 1.0
TTL_S = 3.0
FLEET_PORT = 9000


class _Drained(Registration):
    """The real registration, whose drain is written down."""

    def __init__(self, party: InstanceParty, client: ObservedClient, instance: Instance, rng: random.Random) -> None:
        super().__init__(client, instance, rng)
        self._party = party

    async def drain(self, *, ack_timeout_s: float = 5.0, min_s: float = 2.0) -> None:
        world, name = self._party.world, self._party.name
        began = world.now()
        world.trace.note(f"{name} drains")
        await super().drain(ack_timeout_s=ack_timeout_s, min_s=min_s)
        world.trace.note(f"{name} is drained")
        world.trace.count("drain")
        if world.now() - began > max(min_s, ack_timeout_s) - 0.5:
            world.trace.count("drain with a lost acknowledgement")
        world.requests.leaving(name, began, world.now(), "drained")


class InstanceParty(Party):
    """One instance, `orders#2`."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name, world.address())
        self.service = name.partition("#")[0]
        self.client: ObservedClient | None = None
        self.registration: _Drained | None = None
        self.stopping: asyncio.Future[None] | None = None

    async def live(self) -> None:
        world, loop, rng = self.world, self.world.loop, self.rng()
        server = await loop.create_server(lambda: App(world, self.name), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = self.client = ObservedClient(world, *world.registry_addresses, name=self.name, rng=rng)
        await client.start()
        bound = cast("socket.socket", self.world.network.bind(self.address))
        sidecar = Sidecar(
            client,
            outbound=None,
            inbound=f"{self.address}:0",
            app=f"127.0.0.1:{port}",
            sockets={"inbound": [bound]},
            rng=rng,
        )
        await sidecar.start()
        at = sidecar.at["inbound"]
        checks = (Check(name="app", kind="tcp", address=at, interval_s=2.0, initial="passing"),)
        instance = Instance(
            service=self.service,
            id=self.name,
            address=self.address,
            port=int(at.rpartition(":")[2]),
            ttl_s=TTL_S,
            checks=checks if self.service == "checked" else (),
        )
        self.stopping = loop.create_future()
        while True:
            registration = self.registration = _Drained(self, client, instance, rng)
            try:
                await sidecar.serve_app(
                    registration, stopping=self.stopping, exited=loop.create_future(), stop_app=self._stop_app
                )
            except HomeportError as error:
                world.trace.note(f"{self.name} is not registered: {type(error).__name__}")
                await asyncio.sleep(AGAIN_S)
                continue
            break
        server.close()
        await sidecar.close()
        await client.close()
        self.runs = False
        world.trace.note(f"{self.name} has left")

    async def _stop_app(self) -> None:
        """The application of the simulation ends with its server."""

    def stop(self) -> None:
        """Tell it to leave in good order."""
        if self.runs and self.stopping is not None and not self.stopping.done():
            self.stopping.set_result(None)

    def registers(self) -> dict[str, set[str]]:
        stays = self.runs and (self.stopping is None or not self.stopping.done())
        return {self.service: {self.name} if stays else set()}


class FleetParty(Party):
    """Many small instances of one client, as a gateway registers them for others."""

    def __init__(self, world: World, count: int) -> None:
        super().__init__(world, "fleet", world.address())
        self.count = count

    def registers(self) -> dict[str, set[str]]:
        return {"fleet": {f"fleet-{number}" for number in range(self.count)}}

    async def live(self) -> None:
        rng = self.rng()
        await self.world.loop.create_server(asyncio.Protocol, self.address, FLEET_PORT)  # whoever is in doubt knocks
        client = ObservedClient(self.world, *self.world.registry_addresses, name=self.name, rng=rng)
        await client.start()
        for number in range(self.count):
            instance = Instance(
                service="fleet", id=f"fleet-{number}", address=self.address, port=FLEET_PORT, ttl_s=TTL_S
            )
            while True:
                try:
                    await Registration(client, instance, rng).start()
                    break
                except HomeportError:
                    await asyncio.sleep(AGAIN_S)
