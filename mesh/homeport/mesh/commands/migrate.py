"""`homeport migrate FROM TO`: a registry moved from one machine into etcd, and back, with the result compared."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from homeport.client import Client, InvalidArgument
from homeport.client.core.model import KeyValue
from homeport.mesh.commands.backups import fetch_backup
from homeport.mesh.commands.new_file import NewFile
from homeport.mesh.commands.options import json_option
from homeport.mesh.commands.output import print_json
from homeport.mesh.commands.progress import progress
from homeport.mesh.commands.running import ExitCode, reach, run_and_exit
from homeport.mesh.token import token
from homeport.registry.core.txn import Range
from homeport.registry.store import migration
from homeport.registry.store.backups import read_backup, verify_backup
from homeport.registry.store.etcd_address import SCHEME, link, parse
from homeport.registry.store.etcd_cluster import EtcdCluster


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@json_option
def migrate(source: str, target: str, as_json: bool) -> None:
    """Copy a whole registry from one place to another, and compare the two.

    FROM is a data directory that no registry has open, the address of one that runs, a backup, or etcd://HOST:PORT,...;
    TO is an empty data directory or etcd://HOST:PORT,... with a prefix that holds none. What FROM takes in meanwhile is
    not copied, so stop those who write. TO is a history of its own: watchers start afresh, and every lease has its full
    TTL again. Exit code 1 if it could not be copied whole; into etcd, run it again then.
    """

    async def work() -> int:
        rng = random.SystemRandom()
        with progress("reading", None, "keys"):
            entries = await _read(source)
        with progress("writing", len(entries), "keys") as show:
            if target.startswith(SCHEME):
                async with _cluster(target) as (cluster, prefix):
                    store_id = await migration.write_etcd(cluster, prefix, entries, rng, show)
            else:
                store_id = await asyncio.to_thread(migration.write_directory, target, entries, rng)
        if as_json:
            print_json({"store_id": store_id, "keys": len(entries), "hash": migration.meaning(entries)})
        else:
            click.echo(f"{target}: store {store_id}, {len(entries)} keys, the same as in {source}")
        return ExitCode.DONE

    run_and_exit(work())


async def _read(source: str) -> list[KeyValue]:
    if source.startswith(SCHEME):
        async with _cluster(source) as (cluster, prefix):
            entries, replicas = await migration.read_etcd(cluster, prefix)
        if replicas:
            click.echo(f"homeport: {replicas} replicas serve it still; what they take in now is not copied", err=True)
        return entries
    if (found := await asyncio.to_thread(_found_here, source)) is not None:
        return found
    if ":" not in source:
        raise InvalidArgument(f"{source} is no directory, backup, host:port or {SCHEME}...", field="from")
    with tempfile.TemporaryDirectory(prefix="homeport-migrate-") as folder:
        path = Path(folder, "backup")
        async with Client(*source.split(","), name="homeport migrate", token=token()) as client:
            await reach(client)
            with NewFile(path, force=False) as new:
                await fetch_backup(client, new)
                new.finish()
        click.echo("homeport: that registry goes on; what it takes in now is not copied", err=True)
        return await asyncio.to_thread(_backed_up, str(path))


def _found_here(source: str) -> list[KeyValue] | None:
    """What a directory or a file holds; None if it is neither."""
    if os.path.isdir(source):
        return migration.read_directory(source)
    return _backed_up(source) if os.path.exists(source) else None


def _backed_up(path: str) -> list[KeyValue]:
    verify_backup(path)
    return list(read_backup(path).range(Range(b"", b"")).entries)


@asynccontextmanager
async def _cluster(address: str) -> AsyncIterator[tuple[EtcdCluster, bytes]]:
    at = parse(address)
    cluster = link(at)
    try:
        yield cluster, at.prefix
    finally:
        await cluster.close()
