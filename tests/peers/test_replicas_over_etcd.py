"""Replicas as processes of their own over a real etcd cluster of three, whose members and replicas are killed."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from homeport.client import Check, Client, HomeportError, Instance
from homeport.client.core.messages import Deregister, Register, Stats
from homeport.registry import Registry
from tests.registry.store.etcd_members import Etcd

Eventually = Callable[..., Awaitable[None]]
pytest.importorskip("aetcd", reason="aetcd is not installed (make peers)")

READY_S = 30.0
TTL_S = 2.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Etcd]]:
    with Etcd.members(tmp_path_factory.mktemp("etcd"), 3) as members:
        yield members


@pytest.fixture
def store(cluster: list[Etcd]) -> str:
    """An address with a place of its own in the cluster."""
    return f"etcd://{','.join(member.endpoint for member in cluster)}/test-{os.urandom(6).hex()}"


class Replica:
    """`homeport serve --store`."""

    def __init__(self, store: str) -> None:
        command = [
            sys.executable,
            "-m",
            "homeport.mesh.cli",
            "serve",
            "--http",
            "off",
            "--dns",
            "off",
            "--rpc",
            "127.0.0.1:0",
        ]
        self.process = subprocess.Popen([*command, "--store", store, "--node", "n"], stdout=subprocess.PIPE, text=True)
        self.address = ""

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        ready = re.search(r"rpc (\S+)", self.process.stdout.readline())
        assert ready is not None
        self.address = ready[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def replicas(store: str) -> Iterator[list[Replica]]:
    """Three of them."""
    started = [Replica(store) for _ in range(3)]
    try:
        for replica in started:
            replica.wait_ready()
        yield started
    finally:
        for replica in started:
            replica.kill()
            if replica.process.stdout is not None:
                replica.process.stdout.close()


async def test_a_replicas_death_ends_no_lease_and_loses_no_write(
    replicas: list[Replica], eventually: Eventually
) -> None:
    one, two, three = replicas
    async with Client(one.address, two.address, three.address) as client, Client(two.address) as other:
        following = other.subscribe("orders")
        async with client.register("orders", port=1, ttl_s=TTL_S, id="o"):
            assert await following.wait_known(5.0)
            await eventually(lambda: len(following.instances) == 1)
            sizes: list[int] = []
            following.listen(lambda _event: sizes.append(len(following.instances)))
            await client.kv.put("a", b"1")
            one.kill()
            done = asyncio.Event()  # long enough for the membership of the dead one, and for a TTL after that
            asyncio.get_running_loop().call_later(16.0, done.set)
            await done.wait()
            assert len(following.instances) == 1
            assert 0 not in sizes, "it never left"
            found = await client.kv.get("a")
            assert found is not None
            assert found.value == b"1"
            assert (await other.call(Stats())).numbers["replicas"] == 2
        await eventually(lambda: len(following.instances) == 0)


async def test_no_acknowledged_write_is_lost_while_etcd_members_are_killed_and_paused(
    cluster: list[Etcd], store: str, eventually: Eventually
) -> None:
    async with Registry(store=store) as one, Registry(store=store) as two, one.client() as a, two.client() as b:
        acknowledged: dict[str, int] = {}
        stop = asyncio.Event()

        async def write(client: Client, key: str) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    await client.kv.put(key, b"%d" % number)
                    acknowledged[key] = number
                except HomeportError:
                    await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as tasks:
            for at in range(4):
                tasks.create_task(write(a if at % 2 else b, f"k{at}"))
            for member in cluster:
                before = dict(acknowledged)
                member.kill()
                await eventually(lambda before=before: _all_went_on(before, acknowledged, 4), within_s=60.0)
                member.start()
                member.wait_ready()
                before = dict(acknowledged)
                member.pause()
                await eventually(lambda before=before: _all_went_on(before, acknowledged, 4), within_s=60.0)
                member.resume()
            stop.set()
        for registry in (one, two):
            await eventually(lambda registry=registry: registry.store.read_only is None, within_s=60.0)
            await registry.store.barrier()
        assert one.store.mvcc.hash() == two.store.mvcc.hash()
        for key, number in acknowledged.items():
            found = await a.kv.get(key)
            assert found is not None
            assert int(found.value) >= number


async def test_replicas_keep_alike_what_expires_all_at_once(store: str, eventually: Eventually) -> None:
    one, two = Registry(store=store, node="n"), Registry(store=store, node="n")
    async with one, two, one.client() as a, two.client() as b:
        for at in range(60):
            instance = Instance(service="orders", id=f"o{at}", port=at + 1, ttl_s=TTL_S)
            await (a, b)[at % 2].call(Register(instance=instance))

        def kept(registry: Registry) -> int:
            return len(registry.catalogue.stale)

        await eventually(lambda: kept(one) == kept(two) == 60, within_s=10.0)
        assert one.store.leases() == two.store.leases() == []
        assert (await a.call(Deregister(id="o1"))).applied
        await eventually(lambda: kept(two) == 59, within_s=TTL_S)
        await eventually(lambda: kept(one) == kept(two) == 0, within_s=3 * TTL_S)


def _all_went_on(before: dict[str, int], now: dict[str, int], count: int) -> bool:
    return len(now) == count and all(now[key] > before.get(key, 0) + 3 for key in now)


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[Etcd, str, Path]]:
    """A member with TLS and authentication, its address without user and password, and a file with root's password."""
    for program in ("openssl", "etcdctl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    cert, key, password = tmp_path / "cert", tmp_path / "key", tmp_path / "password"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*new, "-out", cert, "-keyout", key, *subject], check=True, capture_output=True)
    password.write_text("open sesame\n")
    env = {**os.environ, "ETCDCTL_API": "3"}
    with Etcd.members(tmp_path, 1, (cert, key)) as (only,):
        control = ["etcdctl", f"--endpoints=https://{only.endpoint}", f"--cacert={cert}"]
        for command in ("user add root:open\tsesame", "user grant-role root root", "auth enable"):
            words = [word.replace("\t", " ") for word in command.split(" ")]
            subprocess.run([*control, *words], check=True, capture_output=True, env=env)
        yield only, f"{only.endpoint}?ca={cert}", password


async def test_tls_with_user_and_password(secured: tuple[Etcd, str, Path]) -> None:
    only, at, password = secured
    address = f"etcd://root@{at}&password={password}"
    async with Registry(store=address) as registry, registry.client() as client:
        await client.kv.put("a", b"1")
        only.kill()  # which forgets the token that was in use
        only.start()
        only.wait_ready()
        async with asyncio.timeout(30.0):
            while True:
                with suppress(HomeportError):
                    await client.kv.put("a", b"2")
                    break
    password.write_text("something else")
    with pytest.raises(HomeportError):
        await Registry(store=address).start()
    with pytest.raises(HomeportError):
        await Registry(store=f"etcd://{at}").start()


async def test_without_a_quorum_reads_go_on_and_come_back_without_a_restart(
    tmp_path: Path, eventually: Eventually
) -> None:
    with Etcd.members(tmp_path, 1) as (only,):
        async with Registry(store=f"etcd://{only.endpoint}") as registry, registry.client() as client:
            await client.kv.put("a", b"1")
            await client.call(Register(instance=Instance(service="orders", id="o", port=1, ttl_s=TTL_S)))
            only.kill()
            with suppress(HomeportError):
                await client.kv.put("a", b"2")
            await eventually(lambda: registry.store.read_only is not None, within_s=60.0)
            entry = registry.catalogue.find(registry.node, "o")
            assert entry is not None
            await eventually(lambda: entry.seen.mark == "unwritten" and not entry.seen.available)
            found = await client.kv.get("a")
            assert found is not None
            only.start()
            only.wait_ready()
            await eventually(lambda: registry.store.read_only is None, within_s=60.0)
            await client.kv.put("a", b"3")
            await eventually(lambda: registry.catalogue.find(registry.node, "o") is None)


async def test_a_registry_moves_into_etcd_and_back(store: str, tmp_path: Path) -> None:
    old, back = str(tmp_path / "old"), str(tmp_path / "back")

    async def migrate(source: str, target: str) -> None:
        command = [sys.executable, "-m", "homeport.mesh.cli", "migrate", source, target]
        await asyncio.to_thread(subprocess.run, command, check=True)

    async with Registry(data_dir=old) as registry, registry.client() as client:
        for at in range(1_000):
            await client.kv.put(f"k/{at}", b"%d" % at)
        at_rpc = (await registry.serve(rpc="127.0.0.1:0")).rpc
        assert at_rpc is not None
        await migrate(at_rpc, f"{store}-running")
    await migrate(old, store)
    for target in (store, f"{store}-running"):
        async with Registry(store=target) as registry, registry.client() as client:
            assert len(await client.kv.list("k/")) == 1_000
    await migrate(store, back)
    async with Registry(data_dir=back) as registry, registry.client() as client:
        assert len(await client.kv.list("k/")) == 1_000


async def test_a_start_finds_the_members_that_live(cluster: list[Etcd], store: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = store.replace("etcd://", f"etcd://127.0.0.1:{nobody.getsockname()[1]},")
        async with Registry(store=address) as registry, registry.client() as client:
            await client.kv.put("a", b"1")


async def test_checks_are_shared_out_and_move_when_a_replica_leaves(store: str, eventually: Eventually) -> None:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    here = Check(name="tcp", kind="tcp", address=f"127.0.0.1:{port}", interval_s=0.2)
    async with Registry(store=store, node="n") as one:
        two = Registry(store=store, node="n")
        await two.start()
        client = two.client()
        await client.start()
        await client.register("orders", port=port, ttl_s=0.0, id="o", checks=(here,)).start()
        async with two.client() as leased:
            await leased.register("local", port=port, ttl_s=30.0, id="l", checks=(here,)).start()
            key = ("n", "l")
            await eventually(lambda: key in two._scheduler._targets)
            await one.store.barrier()
            assert key not in one._scheduler._targets, "its owner looks after what is local"
            both = [("n", "o") in registry._scheduler._targets for registry in (one, two)]
            assert both.count(True) == 1
            await two.close()
        await eventually(lambda: key in one._scheduler._targets and ("n", "o") in one._scheduler._targets)
        await eventually(lambda: one._scheduler.runs > 2)
        await client.close()
    server.close()
