"""`homeport routes`: look at, judge and change the documents of routes in the registry's store; see docs/routing.md."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import click

from homeport.client import Client, InvalidArgument
from homeport.mesh.commands.options import Actions, registry_option
from homeport.mesh.commands.running import ExitCode, ask
from homeport.sidecar import Routing
from homeport.sidecar.core.route_table import PREFIX
from homeport.sidecar.core.routing import converted, encoded, parsed


def read_routing(text: bytes, *, toml: bool) -> Routing:
    """Read a document as a file has it.

    Raises:
        InvalidArgument: it is none; the message says why.
    """
    if not toml:
        return parsed(text)
    try:
        return converted(tomllib.loads(text.decode()))
    except ValueError as error:  # not UTF-8, or not TOML
        raise InvalidArgument(str(error)) from None


def _read(path: str) -> Routing:
    text = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    return read_routing(text, toml=path.endswith(".toml"))


def routes_option(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> dict[str, Routing]:
    """A callback: repeated NAME=FILE, or NAME={...} with the document itself, by service."""
    found: dict[str, Routing] = {}
    for text in texts:
        name, equals, where = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is not NAME=FILE.")
        try:
            found[name] = parsed(where.encode()) if where.startswith("{") else _read(where)
        except (InvalidArgument, OSError) as error:
            raise click.BadParameter(f"{name}: {error}.") from None
    return found


_file = click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))


@click.group(cls=Actions)
def routes() -> None:
    """Change where requests to a service go."""


@routes.command()
@_file
def check(file: str) -> None:
    """Say whether FILE (JSON, or TOML if it is called so) is right; exit code 1 and the reason if it is not."""
    try:
        found = _read(file)
    except InvalidArgument as error:
        click.echo(f"homeport: {file}: {error}", err=True)
        raise click.exceptions.Exit(ExitCode.NO) from None
    click.echo(f"{file}: {len(found.routes)} routes, {'with' if found.settings is not None else 'without'} settings")


@routes.command()
@click.argument("service")
@registry_option
def get(service: str, registry: str) -> None:
    """Print the document of SERVICE as it is stored; exit code 1 if there is none."""

    async def question(client: Client) -> int:
        entry = await client.kv.get(PREFIX + service.lower())
        if entry is None:
            click.echo(f"homeport: no routes of {service!r}", err=True)
            return ExitCode.NO
        click.echo(entry.value)
        return ExitCode.DONE

    ask(registry, question)


@routes.command()
@click.argument("service")
@_file
@click.option("--cas", type=click.IntRange(min=0), help="Only if the document is at this revision (0: absent).")
@registry_option
def put(service: str, file: str, cas: int | None, registry: str) -> None:
    """Write FILE (- for standard input) as the document of SERVICE, if it is right, and print the revision."""
    document = encoded(_read_or_leave(file))

    async def question(client: Client) -> int:
        click.echo(await client.kv.put(PREFIX + service.lower(), document, cas=cas))
        return ExitCode.DONE

    ask(registry, question)


def _read_or_leave(file: str) -> Routing:
    try:
        return _read(file)
    except InvalidArgument as error:
        raise click.UsageError(f"{file}: {error}.") from None


@routes.command()
@click.argument("service")
@registry_option
def delete(service: str, registry: str) -> None:
    """Delete the document of SERVICE; exit code 1 if there was none."""

    async def question(client: Client) -> int:
        return ExitCode.DONE if await client.kv.delete(PREFIX + service.lower()) else ExitCode.NO

    ask(registry, question)
