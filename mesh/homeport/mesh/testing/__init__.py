"""The testing kit: virtual time and a memory network, so that a day of a cluster is a second of a test.

@virtual_time(seed=7)
async def test_a_silent_peer_is_noticed() -> None:
    network = running_loop().network
    with network.host("10.0.0.2"):
        server = await asyncio.start_server(answer, "10.0.0.2", 80)
    network.partition("127.0.0.1", "10.0.0.2")
    ...
"""

from homeport.mesh.testing.connectors import MemoryConnector, connector_factory
from homeport.mesh.testing.errors import (
    DeadlockError,
    LeftBehindError,
    NotVirtualError,
    StepLimitError,
    VirtualTimeError,
)
from homeport.mesh.testing.hosts import Host
from homeport.mesh.testing.network import Link, Network
from homeport.mesh.testing.running import run_virtual, virtual_time
from homeport.mesh.testing.virtual import VirtualLoop, running_loop, virtual_now

__all__ = [
    "DeadlockError",
    "Host",
    "LeftBehindError",
    "Link",
    "MemoryConnector",
    "Network",
    "NotVirtualError",
    "StepLimitError",
    "VirtualLoop",
    "VirtualTimeError",
    "connector_factory",
    "run_virtual",
    "running_loop",
    "virtual_now",
    "virtual_time",
]
