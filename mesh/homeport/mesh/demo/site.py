"""The site as processes: one registry, one edge sidecar for the users, and two or three instances of each service.

Every instance is a `homeport run` of its own, so an app and its sidecar. What can be done to the site is what happens
to sites: an instance dies, an app dies, the registry is restarted, a service is rolled to a new version. The edge is
never touched: behind it, users must not notice. What the site looks like is asked of the registry, never assumed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from homeport.client import Client, HomeportError, Instance
from homeport.client.core.messages import Ping, Resolve
from homeport.mesh.demo.apps.settings import Settings
from homeport.mesh.demo.processes import FreePorts, Process, spawn

# Service -> how many instances. Each has at least two: one may die while users are there.
SERVICES: Final = {"user-profile": 2, "follower": 2, "photo-upload": 3, "feed": 2, "search": 2}

START_TIMEOUT_S: Final = 30.0  # two dozen interpreters on two busy cores need some ten
STOP_TIMEOUT_S: Final = 20.0  # a drain: acknowledgements, at least 2 s, requests in flight, the app's own end
CHECK_INTERVAL_S: Final = 0.5
ASK_TIMEOUT_S: Final = 2.0
_ASK_AGAIN_S: Final = 0.1


class SiteError(Exception):
    """The site did not get where it should in time; the message says what was missing."""


@dataclass(slots=True)
class Member:
    """One instance of a service: its `homeport run`, with the app below it."""

    id: str
    service: str
    version: str
    process: Process

    def app_pid(self) -> int | None:
        """The process id of the app, as its log tells; None before it got that far."""
        for line in self.process.log.read_text(errors="replace").splitlines():
            if line.startswith("pid "):  # as `apps.service` says
                return int(line.removeprefix("pid "))
        return None


@dataclass(slots=True)
class Site:
    """Use as an async context manager; on the way out every process is ended."""

    directory: Path
    rng: random.Random
    tell: Callable[[str], None]
    settings: Settings = field(default_factory=Settings)
    members: dict[str, Member] = field(default_factory=dict, init=False)
    killed_logs: list[Path] = field(default_factory=list, init=False)
    rpc: str = field(default="", init=False)
    http: str = field(default="", init=False)
    edge: str = field(default="", init=False)
    _client: Client | None = field(default=None, init=False)
    _processes: list[Process] = field(default_factory=list, init=False)
    _registry: Process | None = field(default=None, init=False)
    _ports: FreePorts = field(init=False)
    _numbers: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._ports = FreePorts(self.rng)

    async def __aenter__(self) -> Self:
        self.rpc, self.http, self.edge = (f"127.0.0.1:{self._ports.take()}" for _ in range(3))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._client is not None:
            await self._client.close()
        # The load is over and nobody is left to drain for. Members first: they would only complain about the registry.
        for process in reversed(self._processes):
            process.signal(signal.SIGKILL)
        for member in self.members.values():
            self._kill_app(member)
        await asyncio.gather(*(process.child.wait() for process in self._processes))

    @property
    def client(self) -> Client:
        assert self._client is not None, "the site was not started"
        return self._client

    # --- coming up ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything, and return once every instance takes traffic.

        Raises:
            SiteError: that took longer than `START_TIMEOUT_S`, or a process ended at once.
        """
        self.tell("starting the registry and the edge")
        await self._start_registry()
        self._client = Client(self.rpc, name="demo")
        await self._client.start()
        await self._wait("the registry to answer", self._registry_answers)
        await self.put_settings()
        command = ["sidecar", "--registry", self.rpc, "--outbound", self.edge, "--admin", "off"]
        state = {"HOMEPORT_STATE_DIR": str(self.directory)}
        self._processes.append(await spawn("edge", command, self.directory / "edge.log", state))
        self.tell(f"starting {sum(SERVICES.values())} instances of {len(SERVICES)} services, each with its sidecar")
        started = [await self.add(service, "v1") for service, count in SERVICES.items() for _ in range(count)]
        await self.wait_available(started)
        await self._wait("the edge to listen", self._edge_listens)

    async def add(self, service: str, version: str) -> Member:
        """Start one more instance; it takes traffic some time after this returns."""
        number = self._numbers[service] = self._numbers.get(service, 0) + 1
        member_id = f"{service}-{number}"
        app = f"homeport.mesh.demo.apps.{service.replace('-', '_')}"
        command = ["run", "--name", service, "--id", member_id, "--version", version, "--registry", self.rpc]
        command += ["--port", str(self._ports.take()), "--outbound", "127.0.0.1:0", "--inbound", "127.0.0.1:0"]
        command += ["--admin", "off", "--check-path", "/healthz", "--check-interval", str(CHECK_INTERVAL_S)]
        command += ["--", sys.executable, "-m", app]
        env = {"PICTURES_DATA": str(self.directory), "PYTHONUNBUFFERED": "1", "HOMEPORT_STATE_DIR": str(self.directory)}
        process = await spawn(member_id, command, self.directory / f"{member_id}.log", env)
        self._processes.append(process)
        member = self.members[member_id] = Member(member_id, service, version, process)
        return member

    async def put_settings(self) -> None:
        """Write the settings; an in-memory registry that was restarted needs them again from whoever owns them."""
        for key, value in self.settings.entries().items():
            await self.client.kv.put(key, value)

    async def wait_available(self, members: Iterable[Member]) -> None:
        """Return once the registry says that each of these may take traffic.

        Raises:
            SiteError: after `START_TIMEOUT_S`, or when one of them has ended.
        """
        wanted = {member.id: member for member in members}

        async def available() -> str | None:
            for member in wanted.values():
                if not member.process.running:
                    raise SiteError(f"{member.id} ended with code {member.process.child.returncode}")
            found: set[str] = set()
            for service in {member.service for member in wanted.values()}:
                found |= {instance.id for instance in await self.instances(service) if instance.available}
            missing = sorted(wanted.keys() - found)
            return f"not there: {', '.join(missing)}" if missing else None

        await self._wait("instances to take traffic", available)

    # --- what can happen ----------------------------------------------------------------------------------------

    async def kill(self, member: Member) -> None:
        """SIGKILL the app and its sidecar together: what a machine that loses power looks like to the others."""
        self._forget(member)
        member.process.signal(signal.SIGKILL)
        self._kill_app(member)
        await member.process.child.wait()

    async def kill_app(self, member: Member) -> None:
        """SIGKILL the app alone; its `homeport run` deregisters it at once and ends with its code."""
        self._forget(member)
        self._kill_app(member)
        await self._ended(member, "to end after its app was killed")

    async def kill_registry(self) -> None:
        """SIGKILL the registry; what it knew is gone with it."""
        assert self._registry is not None
        await self._registry.kill()

    async def restart_registry(self) -> float:
        """Start an empty registry where the last one was; return the seconds until every instance was back in it."""
        began = time.monotonic()
        await self._start_registry()
        await self._wait("the new registry to answer", self._registry_answers)
        await self.put_settings()
        await self.wait_available(self.members.values())
        return time.monotonic() - began

    async def roll(self, service: str, version: str) -> None:
        """Replace every instance of a service by one of another version: the new ones first, then the old ones drain.

        Raises:
            SiteError: the new ones did not come up, or an old one did not end in good order.
        """
        old = [member for member in self.members.values() if member.service == service]
        new = [await self.add(service, version) for _ in old]
        await self.wait_available(new)
        for member in old:
            del self.members[member.id]
            member.process.signal(signal.SIGTERM)
        await asyncio.gather(*(self._ended(member, "to drain") for member in old))
        codes = {member.id: member.process.child.returncode for member in old}
        if any(codes.values()):
            raise SiteError(f"drained instances ended with {codes}")
        if left := {instance.id for instance in await self.instances(service)} & codes.keys():
            raise SiteError(f"drained instances are still registered: {', '.join(sorted(left))}")

    async def instances(self, service: str, timeout_s: float = ASK_TIMEOUT_S) -> tuple[Instance, ...]:
        """Every instance of a service as the registry says now, whatever its status."""
        found: list[Instance] = []
        more = True
        while more:
            page = await self.client.call(
                Resolve(service=service, passing=False, offset=len(found)), timeout_s=timeout_s
            )
            found += page.instances
            more = page.more
        return tuple(found)

    def delivered(self, request_ids: Collection[str]) -> set[str]:
        """Those of the requests that the logs of killed instances show to have arrived there."""
        arrived = {
            line.partition(" ")[0] for log in self.killed_logs for line in log.read_text(errors="replace").splitlines()
        }
        return arrived & set(request_ids)

    # --- details ------------------------------------------------------------------------------------------------

    async def _start_registry(self) -> None:
        command = ["serve", "--memory", "--http", self.http, "--rpc", self.rpc, "--dns", "off", "--node", "demo"]
        self._registry = await spawn("registry", command, self.directory / "registry.log")
        self._processes.append(self._registry)

    async def _registry_answers(self) -> str | None:
        assert self._registry is not None
        if not self._registry.running:
            raise SiteError(f"the registry ended with code {self._registry.child.returncode}")
        await self.client.call(Ping(), timeout_s=ASK_TIMEOUT_S)
        return None

    async def _edge_listens(self) -> str | None:
        host, _, port = self.edge.rpartition(":")
        _reader, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        return None

    async def _wait(self, what: str, condition: Callable[[], Awaitable[str | None]]) -> None:
        """Ask until `condition` returns None and not what is missing; an unreachable address is missing too."""
        missing: str | None = "nothing known yet"
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while missing is not None:
                    try:
                        missing = await condition()
                    except (HomeportError, OSError) as error:
                        missing = str(error)
                    if missing is not None:
                        await asyncio.sleep(_ASK_AGAIN_S)
        except TimeoutError:
            raise SiteError(f"waited {START_TIMEOUT_S:.0f} s for {what}: {missing}") from None

    async def _ended(self, member: Member, what: str) -> None:
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await member.process.child.wait()
        except TimeoutError:
            raise SiteError(f"waited {STOP_TIMEOUT_S:.0f} s for {member.id} {what}") from None

    def _forget(self, member: Member) -> None:
        del self.members[member.id]
        self.killed_logs.append(member.process.log)

    def _kill_app(self, member: Member) -> None:
        if member.process.running and (pid := member.app_pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
