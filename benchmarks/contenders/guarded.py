"""A sidecar with chosen guards: `python -m benchmarks.contenders.guarded GUARDS PORT UPSTREAM_PORT...`.

GUARDS is `none`, `all`, or one of budget, outliers, circuit, adaptive, peak-ewma: that alone. The service stands in the
configuration, so that no registry takes part.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

import uvloop

from benchmarks.servers import Server, answers, free_port
from benchmarks.stage import Stage
from homeport.client.core.balancing import Balancing, Outliers
from homeport.sidecar import Sidecar
from homeport.sidecar.core.settings import PLAIN, Adaptive, Circuit, Retries, ServiceSettings

SERVICE: Final = "orders"
GUARDS: Final = {
    "none": PLAIN,
    "budget": ServiceSettings(retries=Retries(), outliers=None, circuit=None),
    "outliers": ServiceSettings(retries=None, outliers=Outliers(), circuit=None),
    "circuit": ServiceSettings(retries=None, outliers=None, circuit=Circuit()),
    "peak-ewma": ServiceSettings(balancing=Balancing(policy="peak-ewma"), retries=None, outliers=None, circuit=None),
    "adaptive": ServiceSettings(retries=None, outliers=None, adaptive=Adaptive(initial=1024)),
    "all": ServiceSettings(),
}


def start(stage: Stage, guards: str, upstreams: Sequence[int]) -> tuple[Server, int]:
    """Start such a sidecar; return it with its port."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.contenders.guarded", guards, str(port), *map(str, upstreams)]
    return stage.server("sidecar", command, answers(f"http://127.0.0.1:{port}/", host=SERVICE)), port


async def _serve(guards: str, port: str, upstreams: list[str]) -> None:
    static = {SERVICE: [f"127.0.0.1:{each}" for each in upstreams]}
    async with Sidecar(outbound=f"127.0.0.1:{port}", static=static, settings=GUARDS[guards]):
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], sys.argv[2], sys.argv[3:]))
