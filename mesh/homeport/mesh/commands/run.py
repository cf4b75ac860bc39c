"""`homeport run`: an app, its sidecar and its registration, living and dying together.

The app is started first and registered only once it is well; a check that fails later takes it out of discovery though
its process lives. On the first stop signal it is drained while it still works, and only then told to stop; a second one
does not wait for that, and further ones are passed on. When the app exits, for whatever reason, it is deregistered in
the same moment, and its exit code becomes ours.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from typing import Final

import click
import msgspec

from homeport.client import Check, Client, Registration, Unavailable
from homeport.client.core.model import INTERVAL_S_DEFAULT, INTERVAL_S_MIN, TTL_S_DEFAULT, TTL_S_MAX, TTL_S_MIN, Status
from homeport.mesh import heap
from homeport.mesh.app import LOCALHOST, App
from homeport.mesh.commands.options import OFF
from homeport.mesh.commands.reloading import Reloading
from homeport.mesh.commands.running import PassedSignals, StopSignals, run_and_exit
from homeport.mesh.commands.sidecar import Proxy, proxy_options, read_proxy, state_file
from homeport.sidecar import AppWatch, Sidecar, Workers
from homeport.sidecar.core.idempotency import META
from homeport.sidecar.core.limits import ACTIVE_MAX
from homeport.sidecar.outbound import TLS_META

LOOPBACK_NAMES: Final = "localhost,127.0.0.1,::1"  # never a service's name, so never the sidecar's business
APP_CHECK: Final = "app"
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
    help="Seconds between two looks at the app, and at where it is reached.",
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
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=ACTIVE_MAX,
    show_default=True,
    help="Requests at the app at a time; more are turned away, and go to other instances.",
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
    concurrency: int,
    proxy: Proxy,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND with its own sidecar, registered while it is well.

    The app finds its port in PORT, the way to other services in HTTP_PROXY, and addresses in HOMEPORT_REGISTRY,
    HOMEPORT_OUTBOUND and HOMEPORT_INBOUND. SIGTERM and Ctrl-C drain it first; a second one does not wait. The exit code
    is the app's (128 + n if signal n ended it). SIGHUP (but from a terminal), SIGUSR1 and SIGUSR2 are passed on to it.
    """
    if check_path and not check_path.startswith("/"):
        raise click.UsageError("--check-path must start with /.")
    inbound = proxy.inbound
    reached = address or (inbound.rpartition(":")[0].strip("[]") if inbound != OFF else LOCALHOST)
    if reached in ("0.0.0.0", "::"):
        raise click.UsageError(f"--inbound {inbound} listens everywhere: say with --address where others find it.")
    if proxy.remembering is not None and inbound == OFF:
        raise click.UsageError("--remember-answers is for the inbound, which is off.")
    options = msgspec.structs.replace(
        proxy.options,
        remembering=proxy.remembering,
        inbound=inbound,
        app=f"{LOCALHOST}:{port}",
        concurrency_max=concurrency,
        state_file=state_file(proxy.state_dir, f"run-{name}-{port}"),
    )
    spoken = {TLS_META: options.inbound_tls, META: options.remembering}
    meta = {name: "true" for name, option in spoken.items() if option is not None}
    app = App(command, port, check_path, stop_timeout)
    context = click.get_current_context()

    def register(client: Client, listener: str | None) -> Registration:
        reached_port = port if listener is None else int(listener.rpartition(":")[2])
        target = f"[{reached}]:{reached_port}" if ":" in reached else f"{reached}:{reached_port}"
        # Both `passing` from the start, since it is registered only after we have found it so. Ours is told on change:
        # that we still live is said by the lease, and by the registry's own look at where the app is reached.
        ours = Check(name=APP_CHECK, kind="ttl", ttl_s=TTL_S_MAX, critical_after=1, passing_after=1, initial="passing")
        reach = Check(name="reach", kind="tcp", address=target, interval_s=check_interval, initial="passing")
        return client.register(
            name,
            port=reached_port,
            id=id_,
            address=reached,
            tags=tags,
            version=version,
            meta=meta if listener is not None else {},
            ttl_s=ttl,
            checks=[ours, reach],
            idle_timeout_s=0.0 if listener is None else options.timeouts.keep_alive_s,
        )

    async def work() -> int:
        signals = StopSignals()
        async with (
            proxy.client(f"homeport run {name}") as client,
            proxy.beside(client, options) as serving,
        ):
            registration = WhenWell(app, register(client, serving.at.get("inbound")), check_interval)
            serving.watch_app(registration.watch.evidence)
            names = {
                "service": name,
                "id": registration.id,
                "version": version,
                "registry": proxy.registry,
            }
            await app.start(environment(os.environ, port, serving.at, names))
            PassedSignals(app.signal)
            Reloading(context, read_proxy, proxy, serving).start()
            try:
                return await _live(app, registration, serving, signals)
            finally:
                await app.kill()

    heap.keep()
    run_and_exit(work())


def environment(
    inherited: Mapping[str, str], port: int, at: Mapping[str, str], names: Mapping[str, str]
) -> dict[str, str]:
    """What the app finds in its environment: `names` and the sidecar's addresses `at` become HOMEPORT_... variables."""
    env = dict(inherited) | {"PORT": str(port)}
    env |= {f"HOMEPORT_{re.sub('[^A-Z0-9]', '_', key.upper())}": value for key, value in {**names, **at}.items()}
    if "outbound" in at:
        # Both cases: programs disagree about which one counts. What is on this machine stays out of it.
        bypass = ",".join(filter(None, [inherited.get("NO_PROXY") or inherited.get("no_proxy"), LOOPBACK_NAMES]))
        for variable, value in (("http_proxy", f"http://{at['outbound']}"), ("no_proxy", bypass)):
            env[variable] = env[variable.upper()] = value
    return env


class WhenWell:
    """A registration that starts once the app is well, however long that takes, and is critical when it is not."""

    def __init__(self, app: App, registration: Registration, check_interval_s: float) -> None:
        self._app = app
        self._registration = registration
        self.id = registration.instance.id
        self.watch = AppWatch(app.look, self._report, interval_s=check_interval_s)
        self._watching: asyncio.Task[None] | None = None

    async def _report(self, status: Status, output: str) -> None:
        await self._registration.report(APP_CHECK, status, output)

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
                await self._registration.start()
                break
            except Unavailable as error:
                log.warning("not registered yet: %s", error)
                await asyncio.sleep(REGISTER_AGAIN_S)
        self._watching = asyncio.create_task(self.watch.run(), name="watching the app")

    async def drain(self) -> None:
        """Nobody sends to an app that was never registered."""
        if self._registration.lease:
            await self._registration.drain()

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self._registration.stop()


async def _live(app: App, registration: WhenWell, proxy: Sidecar | Workers, signals: StopSignals) -> int:
    """From the app's start to its end; return its exit code."""
    stopping = asyncio.create_task(signals.next())
    exited = asyncio.create_task(app.exit_code())
    serving = asyncio.create_task(proxy.serve_app(registration, stopping=stopping, exited=exited, stop_app=app.stop))

    async def hurry() -> None:
        await asyncio.wait([stopping])
        await signals.next()
        serving.cancel()
        while True:
            app.signal(await signals.next())

    hurrying = asyncio.create_task(hurry())
    await asyncio.wait([serving])
    hurrying.cancel()
    if not serving.cancelled():
        serving.result()
    return await app.exit_code()
