"""`homeport sidecar`: a proxy of its own process, until a signal stops it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec

from homeport.client import Client, InvalidArgument
from homeport.mesh import heap
from homeport.mesh.commands.options import (
    OFF,
    address,
    bounds_option,
    default_data_dir,
    listener,
    local_port,
    local_ports,
    registry_option,
    static_service,
    static_services,
)
from homeport.mesh.commands.reloading import Reloading
from homeport.mesh.commands.routes import routes_option
from homeport.mesh.commands.running import ExitCode, StopSignals, run_and_exit
from homeport.mesh.commands.service_settings import EVERYONE, service_option
from homeport.mesh.token import token
from homeport.sidecar import (
    Handover,
    Limits,
    Observing,
    Options,
    Remembering,
    Routing,
    ServerTls,
    ServiceSettings,
    Sidecar,
    Timeouts,
    Workers,
    take_over,
)
from homeport.sidecar.core.access import LogFormat
from homeport.sidecar.workers import REMEMBERING_ALONE, WORKERS_MAX

log = logging.getLogger("homeport.sidecar")

certificate: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


def state_file(directory: Path | None, whose: str) -> Path | None:
    """The endpoints' file of one sidecar: the same at each start, and nobody else's; None when there is to be none."""
    if directory == Path(OFF):
        return None
    return (directory or default_data_dir() / "sidecars").absolute() / f"{quote(whose, safe='')}.endpoints"


def _only_on_linux(_ctx: click.Context, _param: click.Parameter, workers: int) -> int:
    if workers > 1 and sys.platform != "linux":
        raise click.BadParameter("only Linux spreads connections among processes.")
    return workers


@dataclass(frozen=True)
class Proxy:
    """What the options that `sidecar` and `run` share say."""

    registry: str
    inbound: str  # not among the `options` yet: an inbound needs an app
    state_dir: Path | None
    workers: int
    options: Options
    remembering: Remembering | None = None  # not among the `options` yet either

    def client(self, name: str) -> Client:
        return Client(*self.registry.split(","), name=name, token=token())

    def beside(
        self, client: Client, options: Options, sockets: Mapping[str, list[socket.socket]] | None = None
    ) -> Sidecar | Workers:
        """The proxy itself, of one process or of several; `options` are ours with what the command adds."""
        if self.workers == 1:
            return Sidecar(client, options, sockets=sockets)
        level = click.get_current_context().find_root().obj or "warning"
        command = [sys.executable, "-m", "homeport.mesh.worker", level]
        return Workers(client, options, count=self.workers, command=command, sockets=sockets)


def read_proxy(
    *,
    registry: str,
    outbound: str,
    inbound: str,
    admin: str,
    static: tuple[str, ...],
    routes: dict[str, Routing],
    service: dict[str, ServiceSettings],
    tcp: tuple[str, ...],
    http: tuple[str, ...],
    passthrough: tuple[str, ...],
    state_dir: Path | None,
    inbound_tls_cert: Path | None,
    inbound_tls_key: Path | None,
    inbound_tls_client_ca: Path | None,
    workers: int,
    remember_answers: float | None,
    start_traces: bool,
    access_log: str | None,
    access_log_format: LogFormat,
    tracing: float | None,
    otlp: str | None,
    limits: Limits,
    timeouts: Timeouts,
    **own: Any,
) -> Proxy:
    """What the shared options say; `own` are those of the command itself.

    Raises:
        click.UsageError: something cannot be.
    """
    try:
        options = Options(
            outbound=outbound,
            admin=admin,
            static=static_services(static),
            routes=routes,
            settings=service.get(EVERYONE, ServiceSettings()),
            services={name: each for name, each in service.items() if name != EVERYONE},
            tcp=local_ports("--tcp", tcp),
            http=local_ports("--http", http),
            passthrough=passthrough,
            limits=limits,
            timeouts=timeouts,
            start_traces=start_traces,
            inbound_tls=inbound_tls(inbound_tls_cert, inbound_tls_key, inbound_tls_client_ca),
            observing=observing(access_log, access_log_format, tracing, otlp, own.get("name", "")),
        )
    except ValueError as error:
        raise click.UsageError(f"{error}.") from None
    if remember_answers is not None and workers > 1:
        raise click.UsageError(f"--remember-answers: {REMEMBERING_ALONE}.")
    remembering = Remembering(kept_s=remember_answers) if remember_answers is not None else None
    return Proxy(registry, inbound, state_dir, workers, options, remembering)


_SHARED: Final = inspect.signature(read_proxy).parameters.keys() - {"own"}  # the names of the shared options


def proxy_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `sidecar` and `run` share, which reach the command as one: `proxy`."""

    @functools.wraps(command)
    def made(**params: Any) -> None:
        own = {name: value for name, value in params.items() if name not in _SHARED}
        command(proxy=read_proxy(**params), **own)

    for option in reversed(
        [
            registry_option,
            click.option(
                "--outbound",
                type=listener,
                metavar="HOST:PORT|off",
                default="127.0.0.1:15001",
                show_default=True,
                help="Where apps send their calls (their HTTP_PROXY).",
            ),
            click.option(
                "--inbound",
                type=listener,
                metavar="HOST:PORT|off",
                default="127.0.0.1:15006",
                show_default=True,
                help="Where the app is reached from outside.",
            ),
            click.option(
                "--admin",
                type=listener,
                metavar="HOST:PORT|off",
                default="127.0.0.1:15000",
                show_default=True,
                help="/ready, /clusters, /stats, /metrics.",
            ),
            click.option(
                "--static",
                type=static_service,
                metavar="NAME=HOST:PORT,...",
                multiple=True,
                help="A service that registers nowhere; repeatable.",
            ),
            click.option(
                "--tcp",
                type=local_port,
                metavar="HOST:PORT=NAME",
                multiple=True,
                help="A local port whose connections go to instances of a service, whatever they speak; repeatable.",
            ),
            click.option(
                "--http",
                type=local_port,
                metavar="HOST:PORT=NAME",
                multiple=True,
                help="The same for what speaks HTTP/1.1, with retries, routes and all; repeatable.",
            ),
            click.option(
                "--routes",
                metavar="NAME=FILE",
                multiple=True,
                callback=routes_option,
                help="Where requests to a service go, while the store has no routes of it; repeatable.",
            ),
            click.option(
                "--service",
                metavar="NAME=FILE",
                multiple=True,
                callback=service_option,
                help="How a service is called: retries, times, balancing, TLS; * for all that have none; repeatable.",
            ),
            click.option(
                "--passthrough",
                metavar="HOST",
                multiple=True,
                help="A host outside the catalogue that may be called; repeatable.",
            ),
            click.option(
                "--state-dir",
                type=click.Path(file_okay=False, path_type=Path),
                metavar="DIR|off",
                envvar="HOMEPORT_STATE_DIR",
                help="Where the last known endpoints are kept, for a start while no registry answers "
                "[default: homeport/sidecars under $XDG_STATE_HOME or ~/.local/state].",
            ),
            click.option(
                "--inbound-tls-cert",
                type=certificate,
                metavar="FILE",
                help="The certificate that clients of the inbound are shown, in PEM; read again when it changes.",
            ),
            click.option("--inbound-tls-key", type=certificate, metavar="FILE", help="And its key."),
            click.option(
                "--inbound-tls-client-ca",
                type=certificate,
                metavar="FILE",
                help="Only clients with a certificate of these may call.",
            ),
            click.option(
                "--workers",
                type=click.IntRange(1, WORKERS_MAX),
                default=1,
                show_default=True,
                callback=_only_on_linux,
                help="Processes that share the traffic; one for each core that it may use.",
            ),
            click.option(
                "--remember-answers",
                type=click.FloatRange(1, 86_400),
                metavar="SECONDS",
                help="Remember answers to POST and PATCH with an Idempotency-Key at the inbound: the same again is not "
                "run again.",
            ),
            click.option("--start-traces", is_flag=True, help="Give a traceparent to requests that come without one."),
            click.option(
                "--access-log",
                metavar="FILE|-",
                help="Write a line for each request to this file; - is standard output.",
            ),
            click.option(
                "--access-log-format",
                type=click.Choice(["json", "common"]),
                default="json",
                show_default=True,
                help="What those lines are.",
            ),
            click.option(
                "--tracing",
                type=click.FloatRange(0, 1),
                metavar="SHARE",
                help="Take part in W3C traces with a span for each hop; this share of new traces is sampled.",
            ),
            click.option("--otlp", metavar="URL", help="Send sampled spans to this collector, like http://host:4318."),
            bounds_option("--limit", "limits", Limits, "NUMBER", "How large and how many"),
            bounds_option("--timeout", "timeouts", Timeouts, "SECONDS", "How long"),
        ]
    ):
        made = option(made)
    return made


def inbound_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """What the options say of TLS from clients."""
    if cert is not None and key is not None:
        return ServerTls(cert=cert, key=key, client_ca=client_ca)
    if cert or key or client_ca:
        raise click.UsageError("TLS on the inbound needs both --inbound-tls-cert and --inbound-tls-key.")
    return None


def observing(
    access_log: str | None, form: LogFormat, tracing: float | None, otlp: str | None, name: str = ""
) -> Observing:
    """What the options say of logs and traces."""
    try:
        return Observing(
            access_log=access_log,
            log_format=form,
            tracing=tracing,
            otlp=otlp,
            **({"service": name} if name else {}),
        )
    except InvalidArgument as error:
        raise click.UsageError(f"--{error}.") from None


@click.command()
@proxy_options
@click.option(
    "--app", type=address, metavar="HOST:PORT", help="The app behind --inbound; without one, there is no inbound."
)
@click.option("--takeover", is_flag=True, help="Take the place of the sidecar that runs with the same --outbound.")
def sidecar(proxy: Proxy, app: str | None, takeover: bool) -> None:
    """Run a sidecar proxy for apps that are started by something else.

    It registers nothing: `homeport run` does, which starts the app too. Prints one line with the addresses once it
    listens. SIGTERM and Ctrl-C let requests in flight finish. With --takeover it gets the listening sockets of a
    running one, which finishes what it has begun and exits; clients notice nothing. With --config, a changed file takes
    effect within a second, and on SIGHUP.
    """
    outbound = proxy.options.outbound or OFF
    named = outbound != OFF and not outbound.endswith(":0")  # else there is no telling which one it was before
    state = state_file(proxy.state_dir, f"sidecar-{outbound}") if named else None
    if takeover and state is None:
        raise click.UsageError("--takeover needs a --state-dir and an --outbound with a port of its own.")
    if proxy.remembering is not None and (app is None or proxy.inbound == OFF):
        raise click.UsageError("--remember-answers is for the inbound, which needs --app and --inbound.")
    options = msgspec.structs.replace(
        proxy.options,
        inbound=proxy.inbound if app is not None else None,
        app=app,
        state_file=state,
        remembering=proxy.remembering,
    )

    async def work() -> int:
        signals = StopSignals()
        taken = await take_over(state.with_suffix(".socket")) if takeover and state is not None else None
        try:
            sockets = taken.matching(options.addresses) if taken is not None else None
            async with proxy.client("homeport sidecar") as client, proxy.beside(client, options, sockets) as serving:
                if taken is not None:
                    await taken.ready()
                listeners = dict.fromkeys(["outbound", "inbound", "admin", *options.addresses])
                where = (f"{listener} {serving.at.get(listener, OFF)}" for listener in listeners)
                click.echo("  ".join(["homeport: sidecar", *where]))
                reloading = Reloading(click.get_current_context(), read_proxy, proxy, serving)
                await _serve(serving, signals, reloading, state.with_suffix(".socket") if state is not None else None)
        except BaseException:
            if taken is not None:
                taken.give_up()
            raise
        return ExitCode.DONE

    heap.keep()
    run_and_exit(work())


async def _serve(proxy: Sidecar | Workers, signals: StopSignals, reloading: Reloading, path: Path | None) -> None:
    """Until a signal, which ends all there is to end, or a successor, which leaves time for that."""
    reloading.start()
    replaced = asyncio.Event()
    handover = Handover(path, lambda: proxy.sockets, replaced.set) if path is not None else None
    if handover is not None:
        try:
            await handover.start()
        except OSError as error:
            log.warning("nobody will be able to take over: %s: %s", path, error)
    stopping, leaving = asyncio.create_task(_stop(signals, reloading)), asyncio.create_task(replaced.wait())
    await asyncio.wait([stopping, leaving], return_when=asyncio.FIRST_COMPLETED)
    reloading.stop()
    if handover is not None:
        await handover.close()
    if replaced.is_set():
        retiring = asyncio.create_task(proxy.retire())
        await asyncio.wait([retiring, stopping], return_when=asyncio.FIRST_COMPLETED)
    else:
        draining = asyncio.create_task(proxy.drain())
        await asyncio.wait([draining, asyncio.create_task(signals.next())], return_when=asyncio.FIRST_COMPLETED)


async def _stop(signals: StopSignals, reloading: Reloading) -> None:
    """Return at the first signal to stop. With a file, SIGHUP means to read it again, unless a terminal went away."""
    while await signals.next() == getattr(signal, "SIGHUP", None) and reloading.follows and not os.isatty(0):
        reloading.reload()
