"""The stores that keep the contract: each backend is one entry here, and runs every test of the suite."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from homeport.mesh.simulation.etcd import ModelEtcd, ModelLink
from homeport.registry.store.contract import Store
from homeport.registry.store.embedded import EmbeddedStore
from homeport.registry.store.etcd import EtcdStore
from tests.registry.store.etcd_members import Etcd

MakeStore = Callable[[], AbstractAsyncContextManager[Store]]


@asynccontextmanager
async def embedded(data_dir: Path | None) -> AsyncIterator[Store]:
    """In memory or journaled, on the clock of the running loop."""
    now = asyncio.get_running_loop().time
    store = EmbeddedStore(now=now, rng=random.Random(), data_dir=None if data_dir is None else str(data_dir))
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def over_model_etcd() -> AsyncIterator[Store]:
    """Over a model of etcd, on the clock of the running loop."""
    now = asyncio.get_running_loop().time
    store = EtcdStore(ModelLink(ModelEtcd()), now=now, rng=random.Random())
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def over_etcd(endpoint: str, prefix: bytes) -> AsyncIterator[Store]:
    """Over a real etcd, in a place of its own."""
    from homeport.registry.store.etcd_link import EtcdLink  # where grpc is installed

    now = asyncio.get_running_loop().time
    store = EtcdStore(EtcdLink([endpoint]), now=now, rng=random.Random(), prefix=prefix)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(scope="session")
def etcd_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running etcd of one member."""
    pytest.importorskip("aetcd", reason="aetcd is not installed (make peers)")
    with Etcd.members(tmp_path_factory.mktemp("etcd"), 1) as members:
        yield members[0].endpoint


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses `make_store` over every backend; a real etcd knows real time alone."""
    if "make_store" in metafunc.fixturenames:
        kinds = ["memory", "journal", "model etcd"]
        if inspect.iscoroutinefunction(metafunc.function):
            kinds.append(pytest.param("etcd", marks=pytest.mark.peers))  # type: ignore[arg-type]  # a list of both
        metafunc.parametrize("make_store", kinds, indirect=True)


@pytest.fixture
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """`async with make_store() as store`: a new, empty, running store, on real or virtual time."""
    numbers = count()
    kind: str = request.param
    endpoint = request.getfixturevalue("etcd_endpoint") if kind == "etcd" else ""

    def make() -> AbstractAsyncContextManager[Store]:
        if kind == "memory":
            return embedded(None)
        if kind == "model etcd":
            return over_model_etcd()
        if kind == "etcd":
            return over_etcd(endpoint, f"/test/{random.randbytes(8).hex()}/".encode())
        data_dir = tmp_path / f"store-{next(numbers)}"
        data_dir.mkdir()
        return embedded(data_dir)

    return make
