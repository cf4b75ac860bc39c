"""`homeport backup` and `homeport restore`: everything a running registry holds, into a file and back.

A backup is fetched into a file beside its name, verified and only then renamed, so there is never half a backup. A
restore verifies the file before it says a word to the registry, which verifies it again before it touches anything.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

import click

from homeport.client import Client, ConnectionLost, RegistryError, Unavailable
from homeport.client.core.messages import BackupOpen, BackupRead, RestoreCommit, RestoreWrite, Stats
from homeport.mesh.commands.new_file import NewFile
from homeport.mesh.commands.options import json_option, registry_option
from homeport.mesh.commands.output import print_json
from homeport.mesh.commands.progress import progress
from homeport.mesh.commands.running import ExitCode, ask
from homeport.registry.store.backups import Origin, origin, verify_backup
from homeport.registry.store.journal import JournalError

_COPY_TIMEOUT_S: Final = 600.0  # in which a registry copies or verifies its 16 GiB at most, on a slow disk
_RETURN_TIMEOUT_S: Final = 120.0  # in which it loads what was restored: a million keys take a sixth of that
_PIECE_BYTES: Final = 1024 * 1024  # of a file on its way to the registry: half of the longest frame


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if there is one.")
@registry_option
@json_option
def backup(file: Path, force: bool, registry: str, as_json: bool) -> None:
    """Copy everything that a running registry holds to FILE, consistent at one revision.

    The registry goes on meanwhile. FILE appears only when it is whole, verified and on disk; only its owner may read
    it. Exit code 1 if FILE exists or cannot be written.
    """

    async def question(client: Client) -> int:
        with NewFile(file, force=force) as new:
            size = await fetch_backup(client, new)
            held = await asyncio.to_thread(_settled, new)
        if as_json:
            print_json({"file": str(file), "bytes": size, "revision": held.revision, "store_id": held.store_id})
        else:
            click.echo(f"{file}: store {held.store_id} at revision {held.revision}, {size} bytes")
        return ExitCode.DONE

    ask(registry, question)


async def fetch_backup(client: Client, new: NewFile) -> int:
    with progress("copying", None, "bytes"):
        size = (await client.call(BackupOpen(), timeout_s=_COPY_TIMEOUT_S)).size
    done = 0
    with progress("fetching", size, "bytes") as show:
        while piece := (await client.call(BackupRead(offset=done))).data:
            new.write(piece)
            done += len(piece)
            show(done)
    if done != size:
        raise RegistryError(f"the registry announced {size} bytes and sent {done}: nothing was kept")
    return size


def _settled(new: NewFile) -> Origin:
    new.sync()
    verify_backup(str(new.part))
    held = origin(str(new.part))
    new.finish()
    return held


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask first; without a terminal nothing is asked either.")
@registry_option
@json_option
def restore(file: Path, yes: bool, registry: str, as_json: bool) -> None:
    """Put FILE, a backup, in the place of everything that a running registry holds.

    The registry closes its connections and comes back at the same addresses, as a history of its own: watchers start
    afresh, and every lease has its full TTL again. Exit code 1 if FILE is not a whole backup; nothing has changed then.
    """
    if "," in registry:
        raise click.UsageError("a restore is for one registry: name only one address.")
    # Asked before anything runs on the loop: there, a prompt would take two Ctrl-C.
    try:
        verify_backup(str(file))
        held = origin(str(file))
    except JournalError as error:
        click.echo(f"homeport: {error}", err=True)
        click.get_current_context().exit(ExitCode.NO)
    if not yes and sys.stdin.isatty():
        what = f"{file} (store {held.store_id} at revision {held.revision})"
        click.confirm(f"Replace everything that the registry at {registry} holds by {what}?", abort=True, err=True)

    async def question(client: Client) -> int:
        with file.open("rb") as source:
            await _hand_over(client, source, os.fstat(source.fileno()).st_size)
        await _wait_restored(client)
        report = await client.call(Stats())
        revision, keys = report.numbers["revision"], report.numbers["keys"]
        if as_json:
            print_json({"store_id": report.store_id, "revision": revision, "keys": keys, "from": held._asdict()})
        else:
            click.echo(f"restored: store {report.store_id} at revision {revision}, {keys} keys")
        return ExitCode.DONE

    ask(registry, question)


async def _hand_over(client: Client, source: BinaryIO, size: int) -> None:
    done = 0
    with progress("sending", size, "bytes") as show:
        while piece := source.read(_PIECE_BYTES):
            await client.call(RestoreWrite(offset=done, data=piece))
            done += len(piece)
            show(done)


async def _wait_restored(client: Client) -> None:
    """Have the registry take what it was handed, and wait for it to come back.

    Raises:
        Unavailable: it has not come back; what it holds is not known.
        RegistryError: it came back with what it held before.
    """
    before, link = client.store_id, client.link_epoch
    with progress("restoring", None, "bytes"):
        with suppress(ConnectionLost):  # the answer may be cut off by what it announces; the store's name tells
            await client.call(RestoreCommit(), timeout_s=_COPY_TIMEOUT_S)
        if not await client.wait_relinked(link, _RETURN_TIMEOUT_S):
            raise Unavailable(f"the registry has not come back within {_RETURN_TIMEOUT_S:.0f} s; its log says more")
    if client.store_id == before:
        raise RegistryError("the registry came back with what it held before; its log says why")
