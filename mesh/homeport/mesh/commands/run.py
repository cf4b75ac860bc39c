"""`homeport run`: an app, its sidecar and its registration, living and dying together.

The app is started first and registered only once it is well; on the first stop signal it is drained while it still
works, and only then told to stop; a second signal is passed on at once. When the app exits, for whatever reason, it is
deregistered in the same moment, and its exit code becomes ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import click

from homeport.client import Check, Client, Registration, Unavailable
from homeport.client.core.model import INTERVAL_S_DEFAULT, INTERVAL_S_MIN, TTL_S_DEFAULT, TTL_S_MAX, TTL_S_MIN
from homeport.mesh.commands.options import OFF, static_services
from homeport.mesh.commands.running import StopSignals, run_and_exit
from homeport.mesh.commands.sidecar import proxy_options
from homeport.mesh.one_try import Connection, TryError
from homeport.mesh.orphans import tie_to_parent
from homeport.sidecar import Sidecar
from homeport.sidecar.core.limits import KEEP_ALIVE_S

LOCALHOST: Final = "127.0.0.1"
LOOPBACK_NAMES: Final = "localhost,127.0.0.1,::1"  # never a service's name, so never the sidecar's business
WELL_INTERVAL_S: Final = 0.1  # between two looks at an app that is starting
WELL_TIMEOUT_S: Final = 2.0
SLOW_START_S: Final = 10.0  # after which the wait is mentioned; it has no end, for some apps warm up for minutes
REGISTER_AGAIN_S: Final = 1.0

log = logging.getLogger("homeport.run")


@click.command()
@click.option("--name", required=True, help="The service this is an instance of.")
@click.option("--port", type=click.IntRange(1, 65_535), required=True, help="Where the app listens (its PORT).")
@click.option("--id", "id_", default="", help="The instance's id [default: made of name, address and port].")
@click.option("--version", default="", help="The app's version, for others to see.")
@click.option("--tag", "tags", multiple=True, help="A tag; repeatable.")
@click.option("--address", default="", help="Where others reach this machine [default: the host of --inbound].")
@click.option("--check-path", default="", help="A path that answers 2xx while the app is well [default: it listens].")
@click.option(
    "--check-interval",
    type=click.FloatRange(INTERVAL_S_MIN, TTL_S_MAX),
    default=INTERVAL_S_DEFAULT,
    show_default=True,
    help="Seconds between two checks by the registry.",
)
@click.option(
    "--ttl",
    type=click.FloatRange(TTL_S_MIN, TTL_S_MAX),
    default=TTL_S_DEFAULT,
    show_default=True,
    help="Seconds after which the registry forgets us if we go silent.",
)
@click.option(
    "--stop-timeout",
    type=click.FloatRange(min=0),
    default=30,
    show_default=True,
    help="Seconds between telling the app to stop and SIGKILL.",
)
@proxy_options
@click.argument("command", nargs=-1, required=True)
def run(
    name: str,
    port: int,
    id_: str,
    version: str,
    tags: tuple[str, ...],
    address: str,
    check_path: str,
    check_interval: float,
    ttl: float,
    stop_timeout: float,
    registry: str,
    outbound: str,
    inbound: str,
    admin: str,
    static: tuple[str, ...],
    passthrough: tuple[str, ...],
    command: tuple[str, ...],
) -> None:
    """Run COMMAND with its own sidecar, registered while it is well.

    The app finds its port in PORT, the way to other services in HTTP_PROXY, and addresses in HOMEPORT_REGISTRY,
    HOMEPORT_OUTBOUND and HOMEPORT_INBOUND. SIGTERM and Ctrl-C drain it first; a second one does not wait. The exit code
    is the app's (128 + n if signal n ended it).
    """
    if check_path and not check_path.startswith("/"):
        raise click.UsageError("--check-path must start with /.")
    reached = address or (inbound.rpartition(":")[0].strip("[]") if inbound != OFF else LOCALHOST)
    if reached in ("0.0.0.0", "::"):
        raise click.UsageError(f"--inbound {inbound} listens everywhere: say with --address where others find it.")
    app = App(command, port, check_path, stop_timeout)

    def register(client: Client, listener: str | None) -> Registration:
        reached_port = port if listener is None else int(listener.rpartition(":")[2])
        target = f"[{reached}]:{reached_port}" if ":" in reached else f"{reached}:{reached_port}"
        # `passing` from the start, since it is registered only after we have found it so.
        check = Check(name="app", kind="tcp", address=target, interval_s=check_interval, initial="passing")
        if check_path:
            url = f"http://{target}{check_path}"
            check = Check(name="app", kind="http", url=url, interval_s=check_interval, initial="passing")
        return client.register(
            name,
            port=reached_port,
            id=id_,
            address=reached,
            tags=tags,
            version=version,
            ttl_s=ttl,
            checks=[check],
            idle_timeout_s=0.0 if listener is None else KEEP_ALIVE_S,
        )

    async def work() -> int:
        signals = StopSignals()
        async with (
            Client(*registry.split(","), name=f"homeport run {name}") as client,
            Sidecar(
                client,
                outbound=outbound,
                inbound=inbound,
                app=f"{LOCALHOST}:{port}",
                admin=admin,
                static=static_services(static),
                passthrough=passthrough,
            ) as proxy,
        ):
            registration = register(client, proxy.at.get("inbound"))
            names = {
                "service": name,
                "id": registration.instance.id,
                "version": version,
                "registry": registry,
            }
            await app.start(environment(os.environ, port, proxy.at, names))
            try:
                return await _live(app, registration, proxy, signals)
            finally:
                await app.kill()

    run_and_exit(work())


def environment(
    inherited: Mapping[str, str], port: int, at: Mapping[str, str], names: Mapping[str, str]
) -> dict[str, str]:
    """What the app finds in its environment: `names` and the sidecar's addresses `at` become HOMEPORT_... variables."""
    env = dict(inherited) | {"PORT": str(port)}
    env |= {f"HOMEPORT_{key.upper()}": value for key, value in {**names, **at}.items()}
    if "outbound" in at:
        # Both cases: programs disagree about which one counts. What is on this machine stays out of it.
        bypass = ",".join(filter(None, [inherited.get("NO_PROXY") or inherited.get("no_proxy"), LOOPBACK_NAMES]))
        for variable, value in (("http_proxy", f"http://{at['outbound']}"), ("no_proxy", bypass)):
            env[variable] = env[variable.upper()] = value
    return env


class App:
    """The process that we run for somebody else."""

    def __init__(self, command: Sequence[str], port: int, check_path: str, stop_timeout_s: float) -> None:
        self._command = command
        self._port = port
        self._check_path = check_path
        self._stop_timeout_s = stop_timeout_s
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, env: Mapping[str, str]) -> None:
        """Start it, in a session of its own: a terminal's Ctrl-C is for us, who drain it first.

        Raises:
            OSError: there is no such program, or it cannot be run.
        """
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env=env, start_new_session=sys.platform != "win32", preexec_fn=tie_to_parent()
            )
        except OSError as error:  # uvloop leaves out which file
            raise OSError(error.errno, os.strerror(error.errno or 0), self._command[0]) from error

    async def exit_code(self) -> int:
        """Wait for its end and return its exit code, 128 + n if signal n ended it."""
        code = await self._child.wait()
        return code if code >= 0 else 128 - code

    async def well(self) -> None:
        """Wait until its check passes: `check_path` answers 2xx, or without one, its port takes connections."""
        connection = Connection(f"{LOCALHOST}:{self._port}")
        while not await self._is_well(connection):
            connection.close()
            await asyncio.sleep(WELL_INTERVAL_S)
        connection.close()

    async def stop(self) -> int:
        """Tell it to stop, wait, kill it if it takes too long, and return its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self._child.terminate()
        try:
            async with asyncio.timeout(self._stop_timeout_s):
                return await self.exit_code()
        except TimeoutError:
            log.warning("the app did not stop within %g s: killing it", self._stop_timeout_s)
            await self.kill()
            return await self.exit_code()

    async def kill(self) -> None:
        """End it now, with whatever it started in its session, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                if sys.platform == "win32":
                    self._process.kill()
                else:
                    os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    @property
    def _child(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "the app was not started"
        return self._process

    async def _is_well(self, connection: Connection) -> bool:
        if self._check_path:
            try:
                answer = await connection.request(
                    "GET", self._check_path, host=connection.address, timeout_s=WELL_TIMEOUT_S
                )
            except TryError:
                return False
            return 200 <= answer.status < 300
        try:
            async with asyncio.timeout(WELL_TIMEOUT_S):
                _reader, writer = await asyncio.open_connection(LOCALHOST, self._port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True


class WhenWell:
    """A registration that starts once the app is well, however long that and the registry take."""

    def __init__(self, app: App, registration: Registration) -> None:
        self._app = app
        self._registration = registration

    async def start(self) -> None:
        """Wait for the app, then for a registry.

        Raises:
            RequestError: the registry refuses this registration.
        """
        loop = asyncio.get_running_loop()
        slow = loop.call_later(SLOW_START_S, log.warning, "the app's check has not passed yet: not registered so far")
        try:
            await self._app.well()
        finally:
            slow.cancel()
        while True:
            try:
                return await self._registration.start()
            except Unavailable as error:
                log.warning("not registered yet: %s", error)
                await asyncio.sleep(REGISTER_AGAIN_S)

    async def drain(self) -> None:
        """Nobody sends to an app that was never registered."""
        if self._registration.lease:
            await self._registration.drain()

    async def stop(self) -> None:
        await self._registration.stop()


async def _live(app: App, registration: Registration, proxy: Sidecar, signals: StopSignals) -> int:
    """From the app's start to its end; return its exit code."""
    stopping = asyncio.create_task(signals.next())
    exited = asyncio.create_task(app.exit_code())
    serving = asyncio.create_task(
        proxy.serve_app(WhenWell(app, registration), stopping=stopping, exited=exited, stop_app=app.stop)
    )

    async def hurry() -> None:
        await asyncio.wait([stopping])
        await signals.next()
        serving.cancel()

    hurrying = asyncio.create_task(hurry())
    await asyncio.wait([serving])
    hurrying.cancel()
    if not serving.cancelled():
        serving.result()
    return await app.exit_code()
