"""The small parts of the demo: databases, pictures, ports."""

from __future__ import annotations

import asyncio
import random
import socket
import sqlite3
import struct
import zlib
from pathlib import Path

import pytest

from homeport.mesh.demo.apps.store import Store
from homeport.mesh.demo.load import picture
from homeport.mesh.demo.processes import PORTS, FreePorts

SCHEMA = "CREATE TABLE IF NOT EXISTS numbers (number INTEGER PRIMARY KEY)"


async def test_instances_that_share_a_database_lose_nothing_to_each_other(tmp_path: Path) -> None:
    path = str(tmp_path / "shared.sqlite")

    async def instance(number: int) -> None:
        async with Store(path, SCHEMA) as store:
            for each in range(20):
                await store.write([("INSERT INTO numbers VALUES (?)", (number * 1000 + each,))])

    async with asyncio.timeout(20):
        await asyncio.gather(*(instance(number) for number in range(4)))
        async with Store(path, SCHEMA) as store:
            assert await store.read("SELECT count(*) FROM numbers") == [(80,)]


async def test_a_transaction_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    insert = "INSERT INTO numbers VALUES (?)"
    async with Store(str(tmp_path / "one.sqlite"), SCHEMA) as store:
        with pytest.raises(sqlite3.IntegrityError):
            await store.write([(insert, (1,)), (insert, (1,))])
        assert await store.read("SELECT number FROM numbers") == []


def test_a_picture_is_a_png_that_decodes_to_its_size() -> None:
    image = picture(random.Random(1), side=8)
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", image[16:24]) == (8, 8)
    (size,) = struct.unpack(">I", image[33:37])
    assert image[37:41] == b"IDAT"
    assert len(zlib.decompress(image[41 : 41 + size])) == 8 * (1 + 3 * 8)


def test_two_pictures_are_never_the_same() -> None:
    rng = random.Random(1)
    assert picture(rng) != picture(rng)


def test_free_ports_are_free_and_given_once() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    ports = FreePorts(random.Random(seed))
    taken = [ports.take() for _ in range(50)]
    assert len(set(taken)) == len(taken)
    assert all(port in PORTS for port in taken)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken[0]))


def test_a_port_that_somebody_holds_is_not_given() -> None:
    rng = random.Random(5)
    first = FreePorts(rng).take()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", first))
        holder.listen()
        assert FreePorts(random.Random(5)).take() != first
