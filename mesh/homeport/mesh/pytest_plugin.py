"""The pytest plugin: a registry, or a mesh, fresh for every test that names it, whatever framework the test uses.

Every pytest run on a machine with Homeport loads this module, so it imports nothing but pytest: the rest comes
with the first test that asks. It lives beside the testing kit and not in it, as importing from there imports all of it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from homeport.mesh.testing import Mesh
    from homeport.registry import At, RegistryThread


@pytest.fixture
def homeport_registry() -> Iterator[RegistryThread]:
    """A registry in memory, in this process, on a thread of its own: for plain and async tests and fixtures alike.

    `homeport_registry.client()` is an async client for the test's loop, `.serve(http="127.0.0.1:0")` opens fronts.
    """
    from homeport.registry import Registry

    with Registry.in_thread(node="test", guard=False) as registry:
        yield registry


@pytest.fixture
def homeport_addresses(homeport_registry: RegistryThread) -> At:
    """Where the fronts of `homeport_registry` listen, each on a free port: `.http`, `.rpc`, `.dns`."""
    return homeport_registry.serve(http="127.0.0.1:0", rpc="127.0.0.1:0", dns="127.0.0.1:0")


@pytest.fixture
def homeport_consul(homeport_registry: RegistryThread, monkeypatch: pytest.MonkeyPatch) -> str:
    """The `host:port` of Consul's HTTP API on `homeport_registry`, also set as `CONSUL_HTTP_ADDR`."""
    address = homeport_registry.serve(http="127.0.0.1:0").http
    assert address is not None
    monkeypatch.setenv("CONSUL_HTTP_ADDR", address)
    return address


@pytest.fixture
def homeport_mesh(request: pytest.FixtureRequest) -> Mesh:
    """A started `homeport.mesh.testing.Mesh` on the loop of an async test, by pytest-asyncio or anyio."""
    if "anyio_backend" in request.fixturenames:
        name = "_homeport_mesh_anyio"
    elif request.config.pluginmanager.hasplugin("asyncio") and inspect.iscoroutinefunction(
        getattr(request, "function", None)
    ):
        name = "_homeport_mesh_asyncio"
    else:
        pytest.fail(
            "homeport_mesh is for async tests, run by pytest-asyncio or anyio; elsewhere, and in virtual time, say "
            "`async with Mesh() as mesh` (homeport.mesh.testing)",
            pytrace=False,
        )
    mesh: Mesh = request.getfixturevalue(name)
    return mesh


async def _mesh() -> AsyncIterator[Mesh]:
    from homeport.mesh.testing import Mesh

    async with Mesh() as mesh:
        yield mesh


_homeport_mesh_anyio = pytest.fixture(name="_homeport_mesh_anyio")(_mesh)


def pytest_configure(config: pytest.Config) -> None:
    """Offer the mesh by pytest-asyncio's own decorator as well: in strict mode it runs nothing else."""
    if not config.pluginmanager.hasplugin("asyncio"):
        return
    from types import ModuleType

    import pytest_asyncio

    async def fixture() -> AsyncIterator[
        Mesh
    ]:  # not `_mesh` itself, which the decorator would mark for anyio's tests too
        from homeport.mesh.testing import Mesh

        async with Mesh() as mesh:
            yield mesh

    holder = ModuleType("homeport_mesh_asyncio")  # pytest looks for fixtures in modules and types
    vars(holder)["_homeport_mesh_asyncio"] = pytest_asyncio.fixture(name="_homeport_mesh_asyncio")(fixture)
    config.pluginmanager.register(holder, holder.__name__)
