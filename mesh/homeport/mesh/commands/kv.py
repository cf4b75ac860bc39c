"""`homeport kv`: single keys and listings of the key-value store."""

from __future__ import annotations

import sys

import click

from homeport.client import Client, KeyValue
from homeport.mesh.commands.options import json_option, registry_option
from homeport.mesh.commands.output import print_json, print_table
from homeport.mesh.commands.running import ExitCode, ask

_SHOWN_CHARS = 60  # of a value in a table; `get` and `--json` show all of it


@click.group()
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
            print_json(_plain(entry))
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
def put(key: str, value: str, cas: int | None, registry: str) -> None:
    """Write VALUE under KEY and print the revision; a VALUE of - is read from standard input."""
    data = sys.stdin.buffer.read() if value == "-" else value.encode()

    async def question(client: Client) -> int:
        click.echo(await client.kv.put(key, data, cas=cas))
        return ExitCode.DONE

    ask(registry, question)


@kv.command()
@click.argument("key")
@click.option("--prefix", is_flag=True, help="Every key that starts with KEY.")
@click.option("--cas", type=click.IntRange(min=0), help="Only if the key is at this revision.")
@registry_option
def delete(key: str, prefix: bool, cas: int | None, registry: str) -> None:
    """Delete KEY and print how many keys went; exit code 1 if there were none."""
    if prefix and cas is not None:
        raise click.UsageError("--cas goes with one key, not with --prefix.")

    async def question(client: Client) -> int:
        count = await client.kv.delete(key, prefix=prefix, cas=cas)
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
            print_json([_plain(entry) for entry in entries])
        else:
            print_table(
                ["key", "value", "revision"],
                [[_text(entry.key), _shorten(entry.value), str(entry.mod_revision)] for entry in entries],
            )
        return ExitCode.DONE

    ask(registry, question)


def _plain(entry: KeyValue) -> dict[str, object]:
    """Keys and values as text where they are UTF-8; what is not, as base64 under `value_base64`."""
    plain: dict[str, object] = {"key": _text(entry.key)}
    try:
        plain["value"] = entry.value.decode()
    except UnicodeDecodeError:
        plain["value_base64"] = entry.value  # JSON has no bytes: msgspec writes base64
    return plain | {
        "create_revision": entry.create_revision,
        "mod_revision": entry.mod_revision,
        "version": entry.version,
        "lease": entry.lease,
    }


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _shorten(value: bytes) -> str:
    text = value.decode(errors="backslashreplace").replace("\n", "\\n")
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
