"""Callers: a client with a sidecar's outbound, asking services as any program would, and never retrying itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from homeport.mesh.one_try import Connection, TryError
from homeport.mesh.simulation import guarantees
from homeport.mesh.simulation.requests import body_of
from homeport.mesh.simulation.scenario import Step
from homeport.mesh.simulation.world import ObservedClient, Party, World
from homeport.sidecar import Sidecar
from homeport.sidecar.core.limits import Timeouts
from homeport.sidecar.services import Following

if TYPE_CHECKING:
    import socket

FIRST_BYTE_S: Final = 3.0  # shorter than the default, so that a run meets it
TOTAL_S: Final = 15.0  # a sidecar's own bound of an exchange; with it, no silence of anybody is without an end
CALL_S: Final = TOTAL_S + 5.0  # whoever waits longer waits for a sidecar that has forgotten its bound


class CallerParty(Party):
    """One caller, `caller1`."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name, world.address())
        self.client: ObservedClient | None = None
        self.sidecar: Sidecar | None = None

    async def live(self) -> None:
        rng = self.rng()
        self.client = ObservedClient(self.world, *self.world.registry_addresses, name=self.name, rng=rng)
        await self.client.start()
        bound = cast("socket.socket", self.world.network.bind("127.0.0.1"))
        sidecar = Sidecar(
            self.client,
            outbound="127.0.0.1:0",
            sockets={"outbound": [bound]},
            rng=rng,
            timeouts=Timeouts(first_byte_s=FIRST_BYTE_S, total_s=TOTAL_S),
        )
        await sidecar.start()
        self.sidecar = sidecar

    def holds_back(self) -> bool:
        """Whether its client keeps instances that a registry, met again, does not know."""
        return any(following.held for following in self.followings().values())

    def followings(self) -> Mapping[str, Following]:
        """What it follows, by service."""
        outbound = self.sidecar.outbound if self.sidecar is not None else None
        return outbound.subscriptions if outbound is not None else {}

    def follows(self, service: str) -> bool:
        following = self.followings().get(service)
        return following is not None and following.live and not following.held

    async def works(self) -> str:
        for service in [name for name, wanted in self.world.wanted().items() if wanted and name != "fleet"]:
            status = await self._ask(Step(0.0, "call", self.name, service, "GET length 10 0"))
            if status != 200:
                return f"gets {status} from {service}"
        return ""

    async def call(self, step: Step) -> None:
        """Ask a service once: `whom`, by the method and in the manner of `what`."""
        await self._ask(step)

    async def _ask(self, step: Step) -> int | None:
        """The status of the answer, or None for none."""
        world, sidecar = self.world, self.sidecar
        if sidecar is None:
            return None  # it stood still since its start
        method, manner, size, delay_ms = step.what.split()
        request = world.requests.send(method, self.name, step.count if method in ("POST", "PUT") else 0)
        connection = Connection(sidecar.at["outbound"])
        try:
            answer = await connection.request(
                method,
                f"/{request.number}/{manner}/{size}/{delay_ms}",
                host=step.whom,
                timeout_s=CALL_S,
                body=body_of(request.number, request.size),
            )
        except TryError as error:
            world.trace.note(f"{method} {request.number}: no answer, {len(request.deliveries)} deliveries")
            world.requests.failed += 1
            if isinstance(error.__cause__, TimeoutError) and not world.disturbed(
                request.sent, world.now(), lambda name: name == self.name
            ):
                world.trace.broken(guarantees.ANSWERED, f"{method} {request.number} has no end after {CALL_S:g} s")
            if error.began:
                world.trace.count("truncated answer")
            return None
        finally:
            connection.close()
        world.trace.note(f"{method} {request.number}: {answer.status}, {len(request.deliveries)} deliveries")
        if answer.status == 200:
            world.requests.answered += 1
            world.requests.expect_body(request.number, "the answer", answer.body, int(size))
        else:
            world.requests.failed += 1
            if method == "POST" and request.deliveries:
                world.trace.count("request that may not be repeated failed")
        return answer.status

    def count_retries(self) -> None:
        """Say which retries there were, at the end."""
        outbound = self.sidecar.outbound if self.sidecar is not None else None
        for cluster in outbound.clusters.values() if outbound is not None else ():
            if cluster.retries:
                self.world.trace.count("retry")
            if cluster.retries - cluster.connect_failures > 0:
                self.world.trace.count("retry after reset")
