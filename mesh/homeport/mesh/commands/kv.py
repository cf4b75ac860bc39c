"""`homeport kv`: single keys, listings and changes of the key-value store; `exports` has what goes in and out whole."""

from __future__ import annotations

import asyncio
import sys

import click

from homeport.client import Client, KvEvent, Lost
from homeport.mesh.commands.exports import export, import_
from homeport.mesh.commands.json_lines import plain, plain_field
from homeport.mesh.commands.options import Actions, json_option, registry_option
from homeport.mesh.commands.output import print_json, print_json_line, print_table
from homeport.mesh.commands.running import ExitCode, StopSignals, ask

_SHOWN_CHARS = 60  # of a value in a table; `get` and `--json` show all of it


@click.group(cls=Actions)
def kv() -> None:
    """Read and write the key-value store."""


@kv.command()
@click.argument("key")
@registry_option
@json_option
def get(key: str, registry: str, as_json: bool) -> None:
    """Print the value of KEY, byte for byte; exit code 1 if there is no such key."""

    async def question(client: Client) -> int:
        entry = await client.kv.get(key)
        if entry is None:
            click.echo(f"homeport: no key {key!r}", err=True)
            return ExitCode.NO
        if as_json:
            print_json(plain(entry))
        else:
            sys.stdout.buffer.write(entry.value)
            sys.stdout.buffer.flush()
            if sys.stdout.isatty() and not entry.value.endswith(b"\n"):
                click.echo()
        return ExitCode.DONE

    ask(registry, question)


@kv.command()
@click.argument("key")
@click.argument("value")
@click.option("--cas", type=click.IntRange(min=0), help="Only if the key is at this revision (0: absent).")
@registry_option
@json_option
def put(key: str, value: str, cas: int | None, registry: str, as_json: bool) -> None:
    """Write VALUE under KEY and print the revision; a VALUE of - is read from standard input."""
    data = sys.stdin.buffer.read() if value == "-" else value.encode()

    async def question(client: Client) -> int:
        revision = await client.kv.put(key, data, cas=cas)
        if as_json:
            print_json({"key": key, "revision": revision})
        else:
            click.echo(revision)
        return ExitCode.DONE

    ask(registry, question)


@kv.command()
@click.argument("key")
@click.option("--prefix", is_flag=True, help="Every key that starts with KEY.")
@click.option("--cas", type=click.IntRange(min=0), help="Only if the key is at this revision.")
@registry_option
@json_option
def delete(key: str, prefix: bool, cas: int | None, registry: str, as_json: bool) -> None:
    """Delete KEY and print how many keys went; exit code 1 if there were none."""
    if prefix and cas is not None:
        raise click.UsageError("--cas goes with one key, not with --prefix.")

    async def question(client: Client) -> int:
        count = await client.kv.delete(key, prefix=prefix, cas=cas)
        if as_json:
            print_json({"key": key, "deleted": count})
        else:
            click.echo(count)
        return ExitCode.DONE if count else ExitCode.NO

    ask(registry, question)


@kv.command("list")
@click.argument("prefix", default="")
@registry_option
@json_option
def list_(prefix: str, registry: str, as_json: bool) -> None:
    """List the keys that start with PREFIX (all, if it is left out), in key order."""

    async def question(client: Client) -> int:
        entries = await client.kv.list(prefix)
        if as_json:
            print_json([plain(entry) for entry in entries])
        else:
            print_table(
                ["key", "value", "revision"],
                [[_text(entry.key), _shorten(entry.value), str(entry.mod_revision)] for entry in entries],
            )
        return ExitCode.DONE

    ask(registry, question)


@kv.command()
@click.argument("key")
@click.option("--prefix", is_flag=True, help="Every key that starts with KEY.")
@click.option("--from", "start", type=click.IntRange(min=1), help="Changes of this revision first [default: from now].")
@registry_option
@json_option
def watch(key: str, prefix: bool, start: int | None, registry: str, as_json: bool) -> None:
    """Print every change of KEY, a line each, until Ctrl-C or SIGTERM; over restarts of the registry too.

    What the registry no longer remembers is reported as lost, never passed over.
    """

    async def question(client: Client) -> int:
        stopped = asyncio.ensure_future(StopSignals().next())
        printing = asyncio.ensure_future(follow(client))
        try:
            await asyncio.wait([stopped, printing], return_when=asyncio.FIRST_COMPLETED)
            if printing.done():
                printing.result()
        finally:
            stopped.cancel()
            printing.cancel()
            await asyncio.gather(stopped, printing, return_exceptions=True)
        return ExitCode.DONE

    async def follow(client: Client) -> None:
        async for change in client.kv.watch(key, prefix=prefix, start_revision=start or 0):
            if isinstance(change, Lost):
                _print_lost(change, as_json)
                continue
            for event in change.events:
                _print_change(event, as_json)

    ask(registry, question)


kv.add_command(export)
kv.add_command(import_)


def _print_change(event: KvEvent, as_json: bool) -> None:
    if as_json:
        value = {"deleted": True} if event.value is None else plain_field("value", event.value)
        print_json_line({"revision": event.revision, **plain_field("key", event.key), **value})
    elif event.value is None:
        click.echo(f"{event.revision}  delete  {_text(event.key)}")
    else:
        click.echo(f"{event.revision}  put  {_text(event.key)}  {_shorten(event.value)}")


def _print_lost(lost: Lost, as_json: bool) -> None:
    if as_json:
        print_json_line({"lost_from_revision": lost.from_revision, "lost_to_revision": lost.to_revision})
    else:
        click.echo(
            f"homeport: lost revisions {lost.from_revision} to {lost.to_revision}: list the keys again", err=True
        )


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _shorten(value: bytes) -> str:
    text = value.decode(errors="backslashreplace").replace("\n", "\\n")
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
