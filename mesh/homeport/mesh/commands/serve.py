"""`homeport serve`: a registry of its own process, until a signal stops it."""

from __future__ import annotations

import click

from homeport.mesh.commands.options import OFF, listener, rpc_listeners
from homeport.mesh.commands.running import ExitCode, StopSignals, run_and_exit
from homeport.registry import Registry


@click.command()
@click.option(
    "--http",
    type=listener,
    metavar="HOST:PORT|off",
    default="127.0.0.1:8500",
    show_default=True,
    help="The HTTP API (Consul's); port 0 takes a free one.",
)
@click.option(
    "--rpc",
    type=rpc_listeners,
    metavar="HOST:PORT|unix:/PATH|off",
    default="127.0.0.1:8300",
    show_default=True,
    help="What Homeport's own clients and sidecars speak; several with commas between them.",
)
@click.option("--node", default="", help="This node's name [default: the host name].")
def serve(http: str, rpc: str, node: str) -> None:
    """Run a registry that keeps everything in memory.

    Prints one line with the addresses once it answers there. SIGTERM and Ctrl-C stop it gracefully.
    """
    run_and_exit(_serve(http, rpc, node))


async def _serve(http: str, rpc: str, node: str) -> int:
    signals = StopSignals()
    async with Registry(node=node) as registry:
        at = await registry.serve(http=http, rpc=rpc.split(","))
        where = ",".join(filter(None, [at.rpc, at.rpc_unix])) or OFF
        click.echo(f"homeport: serving  http {at.http or OFF}  rpc {where}")
        await signals.next()
    return ExitCode.DONE
