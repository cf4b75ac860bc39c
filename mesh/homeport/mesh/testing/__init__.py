"""The testing kit: services with sidecars in one loop, virtual time and a memory network.

    @virtual_time(seed=7)
    async def test_a_dead_instance_fails_nobody() -> None:
        async with Mesh() as mesh:
            await mesh.service("orders", orders, instances=3)
            mesh.kill("orders#2")
            await mesh.call("orders", "/")
            assert mesh.failed == 0

Beneath it are the loop and its network, for any asyncio code:

    network = running_loop().network
    with network.host("10.0.0.2"):
        server = await asyncio.start_server(answer, "10.0.0.2", 80)
    network.partition("127.0.0.1", "10.0.0.2")
"""

from homeport.mesh.one_try import Answer, TryError
from homeport.mesh.testing.connectors import MemoryConnector, connector_factory
from homeport.mesh.testing.errors import (
    DeadlockError,
    LeftBehindError,
    NotVirtualError,
    StepLimitError,
    VirtualTimeError,
)
from homeport.mesh.testing.hosts import Host
from homeport.mesh.testing.mesh import Member, Mesh
from homeport.mesh.testing.network import Link, Network
from homeport.mesh.testing.running import run_virtual, virtual_time
from homeport.mesh.testing.virtual import VirtualLoop, running_loop, virtual_now

__all__ = [
    "Answer",
    "DeadlockError",
    "Host",
    "LeftBehindError",
    "Link",
    "Member",
    "MemoryConnector",
    "Mesh",
    "Network",
    "NotVirtualError",
    "StepLimitError",
    "TryError",
    "VirtualLoop",
    "VirtualTimeError",
    "connector_factory",
    "run_virtual",
    "running_loop",
    "virtual_now",
    "virtual_time",
]
