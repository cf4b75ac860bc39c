"""`homeport serve`: a registry of its own process, durable unless told otherwise, until a signal stops it."""

from __future__ import annotations

import gc
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

from homeport.mesh.commands.collecting import short_collections
from homeport.mesh.commands.dns import dns_options, dns_settings
from homeport.mesh.commands.options import OFF, default_data_dir, listener, rpc_listeners
from homeport.mesh.commands.running import ExitCode, StopSignals, log_bare_lines, run_and_exit
from homeport.mesh.token import token
from homeport.registry import DnsSettings, Registry
from homeport.registry.store.journal import JournalError


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
@dns_options
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where everything is kept, made if it is not there "
    "[default: $XDG_STATE_HOME/homeport or ~/.local/state/homeport, for root too].",
)
@click.option("--memory", is_flag=True, help="Keep everything in memory instead: a restart begins empty.")
@click.option(
    "--store",
    metavar="etcd://HOST:PORT,...",
    default="",
    help="Share an etcd cluster with other replicas instead; docs/cluster.md has the rest of the address.",
)
@click.option("--node", default="", help="This node's name [default: the host name].")
@click.option("--access-log", is_flag=True, help="Write a line of JSON for each HTTP request to standard error.")
def serve(
    http: str,
    rpc: str,
    dns: str,
    data_dir: Path | None,
    memory: bool,
    store: str,
    node: str,
    access_log: bool,
    **more: Any,
) -> None:
    """Run a registry that keeps what it acknowledged on disk.

    Prints one line with the addresses and the place of the data once it answers. SIGTERM and Ctrl-C stop it gracefully.
    With HOMEPORT_TOKEN set, it answers only those who present that token; every other command finds it there, too.
    """
    if memory + (data_dir is not None) + bool(store) > 1:
        raise click.UsageError(
            "--data-dir, --memory and --store exclude each other (all may also come from --config or "
            "HOMEPORT_SERVE_... variables)."
        )
    settings = dns_settings(**more)
    where = None if memory or store else (data_dir or default_data_dir()).absolute()
    run_and_exit(_serve(http, rpc, dns, settings, where, store, node, access_log))


def _make(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # people keep secrets in it
    except OSError as error:
        raise JournalError(
            f"the data directory {data_dir} cannot be made ({error.strerror}): choose another with --data-dir, or "
            "--memory"
        ) from error


async def _serve(
    http: str, rpc: str, dns: str, settings: DnsSettings, data_dir: Path | None, store: str, node: str, access_log: bool
) -> int:
    signals = StopSignals()
    if access_log:
        log_bare_lines("homeport.registry.http.access")
    if data_dir is not None:
        _make(data_dir)
    registry = Registry(data_dir, store=store, node=node, http_access_log=access_log, dns=settings, token=token())
    # What is loaded lives long. Left to the collector, loading it would spend almost half of its time on full
    # collections, and every later one would walk all of it and stall the loop for as long; frozen, it is never looked
    # at again, and still freed when its last reference goes. Only the command does so: a library has no say over the
    # other objects of its process.
    async with AsyncExitStack() as stack:
        gc.disable()
        try:
            await stack.enter_async_context(registry)
        finally:
            gc.enable()
        gc.collect()
        gc.freeze()
        stack.enter_context(short_collections())
        at = await registry.serve(http=http, rpc=rpc.split(","), dns=dns.split(","))
        where = ",".join(filter(None, [at.rpc, at.rpc_unix])) or OFF
        data = data_dir or store or "memory"
        click.echo(f"homeport: serving  http {at.http or OFF}  rpc {where}  dns {at.dns or OFF}  data {data}")
        await signals.next()
    return ExitCode.DONE
