"""`homeport sidecar`: a proxy of its own process, until a signal stops it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from homeport.client import Client
from homeport.mesh.commands.options import OFF, address, listener, registry_option, static_service, static_services
from homeport.mesh.commands.running import ExitCode, StopSignals, run_and_exit
from homeport.sidecar import Sidecar

F = TypeVar("F", bound=Callable[..., Any])


def proxy_options(command: F) -> F:
    """The options that `sidecar` and `run` share."""
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
                "--passthrough",
                metavar="HOST",
                multiple=True,
                help="A host outside the catalogue that may be called; repeatable.",
            ),
        ]
    ):
        command = option(command)
    return command


@click.command()
@proxy_options
@click.option(
    "--app", type=address, metavar="HOST:PORT", help="The app behind --inbound; without one, there is no inbound."
)
def sidecar(
    registry: str,
    outbound: str,
    inbound: str,
    admin: str,
    static: tuple[str, ...],
    passthrough: tuple[str, ...],
    app: str | None,
) -> None:
    """Run a sidecar proxy for apps that are started by something else.

    It registers nothing: `homeport run` does, which starts the app too. Prints one line with the addresses once it
    listens. SIGTERM and Ctrl-C let requests in flight finish.
    """

    async def work() -> int:
        signals = StopSignals()
        async with (
            Client(*registry.split(","), name="homeport sidecar") as client,
            Sidecar(
                client,
                outbound=outbound,
                inbound=inbound if app else OFF,
                app=app,
                admin=admin,
                static=static_services(static),
                passthrough=passthrough,
            ) as proxy,
        ):
            where = (f"{listener} {proxy.at.get(listener, OFF)}" for listener in ("outbound", "inbound", "admin"))
            click.echo("  ".join(["homeport: sidecar", *where]))
            await signals.next()
            await proxy.drain()
        return ExitCode.DONE

    run_and_exit(work())
