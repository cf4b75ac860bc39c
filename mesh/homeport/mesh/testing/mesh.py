"""`Mesh`: a registry, services with sidecars and somebody who calls them, all in one event loop, for tests.

    async with Mesh() as mesh:
        await mesh.service("orders", orders, instances=3)
        mesh.kill("orders#2")
        for _ in range(100):
            await mesh.call("orders", "/")
        assert mesh.failed == 0

Whatever loop runs it decides how: in virtual time (`@virtual_time(seed=...)`) over the memory network, else over real
sockets on loopback. The parts are the real ones: `Registry`, `Client`, `Sidecar`, and aiohttp's server for the apps.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Final, Self

from aiohttp import web

from homeport.client import Check, Client, Instance, InvalidArgument, Registration, Unavailable
from homeport.mesh.one_try import Answer, Connection, TryError
from homeport.mesh.testing.grounds import CALLER, REGISTRY, Ground, ground_of
from homeport.mesh.testing.virtual import VirtualLoop
from homeport.registry import Registry
from homeport.sidecar import Sidecar

START_S: Final = 30.0  # for new instances to pass their checks: several rounds of the defaults
CALL_S: Final = 30.0  # longer than a sidecar takes to give up by its own timeouts
FLAGS: Final = "x-homeport-response-flags"  # what a sidecar's own answers bear
FAILURES_MAX: Final = 100  # kept to be shown; all are counted

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_here: ContextVar[str] = ContextVar("homeport_mesh_here", default=CALLER)  # the party whose code runs


class Member:
    """One instance of a service: its app, its sidecar, its client and its registration.

    Attributes:
        name: `orders#2`; its id in the registry too.
        client: its own client of the registry.
        address: where the registry says it is.
    """

    def __init__(self, ground: Ground, name: str, handler: Handler, rng: random.Random) -> None:
        self.name = name
        self.address: str = ""
        self.runs: bool = False
        self.client: Client
        self.sidecar: Sidecar
        self._ground = ground
        self._handler = handler
        self._rng = rng
        self._registration: Registration | None = None
        self._closing: list[Callable[[], Awaitable[object]]] = []

    async def start(self, describe: Callable[[str, str, int], Instance]) -> None:
        """Start all of it and register."""
        with self._ground.inside(self.name):
            self._closing = []
            try:
                await self._start(describe)
            except BaseException:
                await self.close()
                raise
        self.runs = True

    async def _start(self, describe: Callable[[str, str, int], Instance]) -> None:
        loop = asyncio.get_running_loop()
        app = web.Server(self._handle)
        listening = await loop.create_server(app, "127.0.0.1", 0)
        self._closing += [lambda: app.shutdown(0), lambda: _closed(listening)]
        self.client = Client(await self._ground.registry_for(self.name), name=self.name, rng=self._rng)
        await self.client.start()
        self._closing.append(self.client.close)
        addresses = {"outbound": "127.0.0.1:0", "inbound": f"{self._ground.ip(self.name)}:0"}
        self.sidecar = Sidecar(
            self.client,
            outbound=addresses["outbound"],
            inbound=addresses["inbound"],
            app=f"127.0.0.1:{listening.sockets[0].getsockname()[1]}",
            sockets=self._ground.sockets(self.name, addresses),
            rng=self._rng,
        )
        await self.sidecar.start()
        self._closing.append(self.sidecar.close)
        self.address = await self._ground.front(self.name, self.sidecar.at["inbound"])
        host, _, port = self.address.rpartition(":")
        self._registration = Registration(self.client, describe(self.name, host, int(port)), self._rng)
        await self._registration.start()
        self._closing.append(self._registration.stop)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        _here.set(self.name)
        return await self._handler(request)

    async def leave(self) -> None:
        """Drain as a service does that is told to stop, then close."""
        assert self._registration is not None
        with self._ground.inside(self.name):
            self.sidecar.begin_drain()
            await self._registration.drain()
            await self.sidecar.drain()
            await self.close()

    async def close(self) -> None:
        """Deregister and close, last first, all of it, whatever a part of it raises."""
        self.runs = False
        closing, self._closing = self._closing, []
        with self._ground.inside(self.name):
            await _close_all(closing)

    def die(self) -> None:
        """It is dead: nothing of it may say goodbye."""
        self.runs = False

    async def bury(self) -> None:
        """Over real sockets its objects live on: close them, cut off as they are."""
        await self.client.close()
        await self.close()


async def _closed(server: asyncio.Server) -> None:
    server.close()


async def _close_all(closing: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Close everything, the last first; what a part of it raises keeps no other open."""
    async with AsyncExitStack() as stack:
        for each in closing:
            stack.push_async_callback(each)


class Mesh:
    """A registry and whatever services a test puts beside it; an async context manager.

    Attributes:
        registry: the registry, in memory; its guard against mass expiry is off.
        client: a client of it that no fault of the mesh reaches.
        members: the instances by name, `orders#1` and so on.
        calls: how many calls were made.
        failed: how many of them got no whole answer, one of 500 or more, or one of a sidecar's own (nobody there).
        failures: what the first of those met, in words.
    """

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.calls: int = 0
        self.failed: int = 0
        self.failures: list[str] = []
        self.registry: Registry
        self.client: Client
        self._ground: Ground
        self._rng: random.Random
        self._sidecar: Sidecar
        self._caller: Client
        self._describe: dict[str, Callable[[str, str, int], Instance]] = {}  # by service
        self._counts: dict[str, int] = {}
        self._registry_runs = False
        self._registry_closing: list[Callable[[], Awaitable[object]]] = []
        self._caller_closing: list[Callable[[], Awaitable[object]]] = []
        self._burials: set[asyncio.Task[None]] = set()
        self._started = False

    async def start(self) -> None:
        """Start the registry and the caller's sidecar; the same as entering the context."""
        if self._started:
            raise InvalidArgument("a mesh starts once")
        self._started = True
        loop = asyncio.get_running_loop()
        self._ground = ground_of(loop)
        self._rng = random.Random(loop.rng.getrandbits(64) if isinstance(loop, VirtualLoop) else None)
        try:
            await self._start_registry()
            with self._ground.inside(CALLER):
                self._caller = Client(await self._ground.registry_for(CALLER), name=CALLER, rng=self._rng)
                await self._caller.start()
                self._caller_closing.append(self._caller.close)
                outbound = {"outbound": "127.0.0.1:0"}
                sockets = self._ground.sockets(CALLER, outbound)
                self._sidecar = Sidecar(self._caller, outbound=outbound["outbound"], sockets=sockets, rng=self._rng)
                await self._sidecar.start()
                self._caller_closing.append(self._sidecar.close)
        except BaseException:
            await self.close()
            raise

    async def _start_registry(self) -> None:
        try:
            with self._ground.inside(REGISTRY):
                self.registry = Registry(node=REGISTRY, rng=self._rng, guard=False)
                await self.registry.start()
                self._registry_closing.append(self.registry.close)
                at = await self.registry.serve(rpc=self._ground.registry_binds)
                assert at.rpc is not None
                self.client = self.registry.client()
                await self.client.start()
                self._registry_closing.append(self.client.close)
            await self._ground.registry_listens(at.rpc)
        except BaseException:
            await self._close_registry()
            raise
        self._registry_runs = True

    async def close(self) -> None:
        """End every fault and close everything, whatever a part of it raises. Idempotent."""
        if not self._started:
            return
        self._ground.heal()
        async with AsyncExitStack() as closing:  # the last first
            closing.push_async_callback(asyncio.sleep, 0)  # connections hear of their end
            closing.callback(self._ground.close)
            closing.push_async_callback(self._bury_all)
            closing.push_async_callback(self._close_registry)
            closing.push_async_callback(self._close_caller)
            for member in self.members.values():
                if member.runs:
                    closing.push_async_callback(member.close)

    async def _close_caller(self) -> None:
        closing, self._caller_closing = self._caller_closing, []
        with self._ground.inside(CALLER):
            await _close_all(closing)

    async def _close_registry(self) -> None:
        self._registry_runs = False
        closing, self._registry_closing = self._registry_closing, []
        with self._ground.inside(REGISTRY):
            await _close_all(closing)

    async def _bury_all(self) -> None:
        if self._burials:
            await asyncio.wait(self._burials)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    # --- services -----------------------------------------------------------------------------------------------

    async def service(
        self,
        name: str,
        handler: Handler,
        *,
        instances: int = 1,
        ttl_s: float = 10.0,
        check_path: str = "",
        tags: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
        zone: str = "",
        version: str = "",
        weight: int = 1,
    ) -> list[Member]:
        """Start instances of a service, `name#1` and so on, and return once they take traffic.

        A second call for the same name adds instances, numbered on.

        Args:
            handler: an aiohttp handler; `mesh.here` names the instance that it serves as.
            check_path: what the registry asks each for; without one, they are well while they renew.

        Raises:
            Unavailable: they do not pass their checks within 30 s.
        """

        def describe(id_: str, address: str, port: int) -> Instance:
            url = f"http://{address}:{port}{check_path}"
            checks = (Check(name="app", kind="http", url=url),) if check_path else ()
            return Instance(
                service=name,
                id=id_,
                address=address,
                port=port,
                ttl_s=ttl_s,
                checks=checks,
                tags=tuple(tags),
                meta=dict(meta or {}),
                zone=zone,
                version=version,
                weight=weight,
            )

        started: list[Member] = []
        for _ in range(instances):
            self._counts[name] = number = self._counts.get(name, 0) + 1
            member = Member(self._ground, f"{name}#{number}", handler, self._own_rng())
            self._describe[member.name] = describe
            self.members[member.name] = member
            await member.start(describe)
            started.append(member)
        await self._until_available(name, started)
        return started

    def _own_rng(self) -> random.Random:
        return random.Random(self._rng.getrandbits(64))

    async def _until_available(self, service: str, members: Sequence[Member]) -> None:
        ids = {member.name for member in members}
        subscription = self.client.subscribe(service)
        try:
            async with asyncio.timeout(START_S):
                async for _ in subscription.events():
                    if ids <= {each.id for each in subscription.instances.values() if each.available}:
                        return
        except TimeoutError:
            states = ", ".join(f"{each.id} {each.status}" for each in subscription.instances.values())
            raise Unavailable(f"not every instance is well after {START_S:g} s: {states}") from None
        finally:
            subscription.close()

    @property
    def here(self) -> str:
        """The instance whose handler runs, else `caller`."""
        return _here.get()

    async def call(
        self,
        service: str,
        target: str = "/",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        by: str = "",
        timeout_s: float = CALL_S,
    ) -> Answer:
        """Ask a service through the sidecar of the instance `by`; this client never retries.

        Without `by`, a handler asks through the sidecar of its own instance, and everybody else through the caller's.

        Raises:
            TryError: no whole answer within `timeout_s`. It has been counted in `failed`.
        """
        by = by or self.here
        sidecar = self._sidecar if by == CALLER else self._running(by).sidecar
        self.calls += 1
        connection = Connection(sidecar.at["outbound"])
        try:
            with self._ground.inside(by):
                answer = await connection.request(
                    method, target, host=service, timeout_s=timeout_s, headers=headers, body=body
                )
        except TryError as error:
            self._note(f"{method} {service} {target}: {error}")
            raise
        finally:
            connection.close()
        if answer.status >= 500 or FLAGS in answer.headers:
            self._note(f"{method} {service} {target}: {answer.status} {answer.body[:200]!r}")
        return answer

    def _note(self, failure: str) -> None:
        self.failed += 1
        if len(self.failures) < FAILURES_MAX:
            self.failures.append(failure)

    # --- faults -------------------------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """Kill an instance, or `registry`, as by SIGKILL: its connections break, and it says goodbye to nobody."""
        if name == REGISTRY:
            self._expect(self._registry_runs, REGISTRY)
            self._registry_runs = False
            self._ground.kill(name)
            closing, self._registry_closing = self._registry_closing, []
            self._bury(_close_all(closing))
            return
        member = self._running(name)
        member.die()
        self._ground.kill(name)
        self._bury(member.bury())

    def _bury(self, work: Awaitable[None]) -> None:
        if self._ground.virtual:  # a crashed host runs nothing any more
            work.close()  # type: ignore[attr-defined]
            return
        burial = asyncio.ensure_future(work)
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)

    async def restart(self, name: str) -> None:
        """Start again what was killed or stopped, at once; a registry begins with nothing, as another history.

        Returns once an instance takes traffic again. `client` and `registry` are new ones after the registry's restart.
        """
        if name == REGISTRY:
            self._expect(not self._registry_runs, REGISTRY)
            await self._start_registry()
            return
        member = self._known(name)
        self._expect(not member.runs, name)
        await member.start(self._describe[name])
        await self._until_available(name.rpartition("#")[0], [member])

    async def stop(self, name: str) -> None:
        """Let an instance leave in good order: draining, then deregistered, then closed."""
        await self._running(name).leave()

    def pause(self, name: str) -> None:
        """Stop an instance or `registry` until `resume`, as by SIGSTOP: connections stand, nothing is read."""
        self._expect_party(name)
        self._ground.pause(name)

    def resume(self, name: str) -> None:
        """Let a paused one go on."""
        self._expect_party(name)
        self._ground.resume(name)

    def partition(self, a: str, b: str | None = None, *, one_way: bool = False) -> None:
        """Let nothing through between two parties, or between one and everybody, until `heal`.

        The parties are the instances, `registry` and `caller`. Over real sockets one of the two is `registry` (whose
        checks still reach the other), or the one is an instance.

        Raises:
            InvalidArgument: there is no such party, or no such partition over real sockets.
        """
        for name in (a, b):
            if name is not None and name != CALLER:
                self._expect_party(name)
        self._ground.partition(a, b, one_way=one_way)

    def heal(self) -> None:
        """End every partition and pause; who was killed stays dead."""
        self._ground.heal()

    def _known(self, name: str) -> Member:
        if name not in self.members:
            there = ", ".join([REGISTRY, CALLER, *self.members])
            raise InvalidArgument(f"there is no {name!r} here; there are {there}", field="name")
        return self.members[name]

    def _running(self, name: str) -> Member:
        member = self._known(name)
        self._expect(member.runs, name)
        return member

    def _expect_party(self, name: str) -> None:
        if name != REGISTRY:
            self._running(name)

    def _expect(self, holds: bool, name: str) -> None:
        if not holds:
            raise InvalidArgument(f"{name} was killed, stopped or restarted before", field="name")
