"""The ground that a mesh stands on: how its parties reach each other, and what can be done to them.

The parties are the registry, the caller and the instances. In virtual time each is a host of the memory network, and
faults are the network's. Over real sockets all of them listen on loopback, and reach each other through gates.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, cast

from homeport.client import InvalidArgument
from homeport.mesh.testing.gates import LOOPBACK, Gate
from homeport.mesh.testing.pairs import ANY
from homeport.mesh.testing.virtual import VirtualLoop

REGISTRY: Final = "registry"
CALLER: Final = "caller"


class Ground(Protocol):
    """What a mesh needs to know of the world."""

    virtual: bool

    def inside(self, party: str) -> contextlib.AbstractContextManager[object]:
        """Run what is inside as code of this party."""
        ...

    registry_binds: str

    def ip(self, party: str) -> str:
        """The address that the party binds for others."""
        ...

    def sockets(self, party: str, names: Mapping[str, str]) -> Mapping[str, Sequence[socket.socket]] | None:
        """Sockets for a sidecar's listeners, by name and address to bind; None: it binds by itself."""
        ...

    async def front(self, party: str, address: str) -> str:
        """Where others reach what the party has bound at `address`."""
        ...

    async def registry_listens(self, address: str) -> None:
        """The registry has bound `address`, and is there for everybody."""
        ...

    async def registry_for(self, party: str) -> str:
        """Where this party reaches the registry."""
        ...

    def kill(self, party: str) -> None:
        """End its code and its connections."""
        ...

    def pause(self, party: str) -> None:
        """Stop its code; its connections stand."""
        ...

    def resume(self, party: str) -> None: ...

    def partition(self, a: str, b: str | None, *, one_way: bool) -> None:
        """Let nothing through between the two, or between `a` and everybody."""
        ...

    def heal(self) -> None:
        """End all of it; who was killed stays dead."""
        ...

    def close(self) -> None: ...


class VirtualGround:
    """A host of the memory network for each party."""

    virtual = True

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._network = loop.network
        self._ips: dict[str, str] = {}
        self.registry_binds: str = f"{self.ip(REGISTRY)}:8300"  # the same after a restart

    def ip(self, party: str) -> str:
        if party not in self._ips:
            number = len(self._ips) + 1
            self._ips[party] = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        return self._ips[party]

    def inside(self, party: str) -> contextlib.AbstractContextManager[object]:
        return self._network.host(self.ip(party))

    def sockets(self, party: str, names: Mapping[str, str]) -> Mapping[str, Sequence[socket.socket]] | None:
        with self.inside(party):
            bound = {name: [self._network.bind(address.rpartition(":")[0])] for name, address in names.items()}
        return cast("Mapping[str, Sequence[socket.socket]]", bound)  # as far as a sidecar asks of them

    async def front(self, _party: str, address: str) -> str:
        return address

    async def registry_listens(self, _address: str) -> None:
        """It listens where it always does."""

    async def registry_for(self, _party: str) -> str:
        return self.registry_binds

    def kill(self, party: str) -> None:
        self._network.crash(self.ip(party))

    def pause(self, party: str) -> None:
        self._network.stall(self.ip(party))

    def resume(self, party: str) -> None:
        with self._network.host(self.ip(party)) as host:
            self._loop.thaw(host)

    def partition(self, a: str, b: str | None, *, one_way: bool) -> None:
        self._network.partition(self.ip(a), ANY if b is None else self.ip(b), one_way=one_way)

    def heal(self) -> None:
        self._network.heal()

    def close(self) -> None:
        """Nothing is left to close: the network ends with its loop."""


class RealGround:
    """Loopback and gates. A partition is between one party and the registry, or one instance and everybody."""

    virtual = False
    registry_binds = f"{LOOPBACK}:0"  # the gates keep their ports

    def __init__(self) -> None:
        self._fronts: dict[str, Gate] = {}
        self._to_registry: dict[str, Gate] = {}
        self._registry = ""

    def ip(self, _party: str) -> str:
        return LOOPBACK

    @contextlib.contextmanager
    def inside(self, _party: str) -> Iterator[None]:
        yield

    def sockets(self, party: str, names: Mapping[str, str]) -> None:
        return None

    async def front(self, party: str, address: str) -> str:
        gate = self._fronts[party] = Gate(
            address
        )  # on a port of its own each time: what is known of the dead stays with it
        await gate.open()
        return gate.address

    async def registry_listens(self, address: str) -> None:
        self._registry = address
        for gate in self._to_registry.values():
            gate.target = address
            gate.shut()  # whoever is still connected is so to an earlier registry
            await gate.open()

    async def registry_for(self, party: str) -> str:
        gate = self._to_registry.setdefault(party, Gate(self._registry))
        gate.shut()
        await gate.open()
        return gate.address

    def _gates(self, party: str) -> list[Gate]:
        if party == REGISTRY:
            return list(self._to_registry.values())
        gates = (self._fronts.get(party), self._to_registry.get(party))
        return [gate for gate in gates if gate is not None]

    def kill(self, party: str) -> None:
        for gate in self._gates(party):
            gate.shut()

    def pause(self, party: str) -> None:
        for gate in self._gates(party):
            gate.hold()

    def resume(self, party: str) -> None:
        for gate in self._gates(party):
            gate.release()

    def partition(self, a: str, b: str | None, *, one_way: bool) -> None:
        if a == REGISTRY and b is not None:
            a, b = b, a
        if one_way or b not in (None, REGISTRY) or (a == CALLER and b is None):
            raise InvalidArgument(
                "over real sockets a partition is between a party and the registry, or between an instance and "
                "everybody; any other can be had in virtual time",
                field="partition",
            )
        if b is None:
            self.pause(a)
        else:
            self._to_registry[a].hold()

    def heal(self) -> None:
        for gate in (*self._fronts.values(), *self._to_registry.values()):
            gate.release()

    def close(self) -> None:
        for gate in (*self._fronts.values(), *self._to_registry.values()):
            gate.shut()


def ground_of(loop: Any) -> Ground:
    """The ground under a loop: virtual if its time is."""
    return VirtualGround(loop) if isinstance(loop, VirtualLoop) else RealGround()
