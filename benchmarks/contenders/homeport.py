"""Homeport itself, by its command line: a registry, and a sidecar beside it."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.load import driver
from benchmarks.load.plan import ClosedLoop, RpcCalls
from benchmarks.load.rpc import rpc_body
from benchmarks.servers import Server, accepts, answers, free_port
from benchmarks.stage import Stage
from homeport.client.core.messages import Register
from homeport.client.core.model import Instance

_COMMAND: Final = (sys.executable, "-m", "homeport.mesh.cli")
_SIDECAR: Final = (*_COMMAND, "sidecar", "--admin", "off")
_LOADERS: Final = 4  # connections that fill a registry
_LOADER_DEPTH: Final = 64


@dataclass(frozen=True)
class Registry:
    """A running `homeport serve`."""

    server: Server
    rpc_port: int
    http_port: int


def serve(
    stage: Stage,
    *,
    data_dir: Path | None = None,
    cores: frozenset[int] | None = None,
    name: str = "homeport",
    dns_port: int = 0,
) -> Registry:
    """Start a registry, in memory or on `data_dir`; with DNS if there is a port for it."""
    rpc_port, http_port = free_port(), free_port()
    command = [*_COMMAND, "serve", "--rpc", f"127.0.0.1:{rpc_port}", "--http", f"127.0.0.1:{http_port}"]
    command += ["--dns", f"127.0.0.1:{dns_port}" if dns_port else "off"]
    command += ["--memory"] if data_dir is None else ["--data-dir", str(data_dir)]
    server = stage.server(name, command, accepts(rpc_port), cores)
    return Registry(server, rpc_port, http_port)


def sidecar(
    stage: Stage, registry: Registry, service: str, *options: str, cores: frozenset[int] | None = None
) -> tuple[Server, int]:
    """Start a sidecar; return it with its outbound port once it answers for `service`."""
    port = free_port()
    command = [*_SIDECAR, "--registry", f"127.0.0.1:{registry.rpc_port}", "--outbound", f"127.0.0.1:{port}", *options]
    ready = answers(f"http://127.0.0.1:{port}/", host=service)
    return stage.server(f"sidecar{_file_name(options)}", command, ready, cores), port


def _file_name(options: Sequence[str]) -> str:
    return re.sub(r"\W+", "-", "-".join(options))


def inbound(stage: Stage, registry: Registry, app_port: int, *options: str) -> tuple[Server, int]:
    """Start a sidecar in front of an application; return it with its inbound port."""
    port = free_port()
    command = [*_SIDECAR, "--registry", f"127.0.0.1:{registry.rpc_port}", "--outbound", "off"]
    command += ["--inbound", f"127.0.0.1:{port}", "--app", f"127.0.0.1:{app_port}", *options]
    return stage.server(f"inbound{_file_name(options)}", command, accepts(port)), port


def register(stage: Stage, registry: Registry, instances: Sequence[Instance]) -> None:
    """Register instances without a TTL, so that nothing else is going on while something is measured."""
    bodies = [rpc_body(Register(instance=instance)) for instance in instances]
    plan = ClosedLoop(
        port=registry.rpc_port,
        connections=_LOADERS,
        depth=_LOADER_DEPTH,
        calls=RpcCalls(bodies),
        operations_max=len(bodies),
    )
    driver.closed_loop(plan, stage.generators, ())


def healthy(registry: Registry, service: str) -> Callable[[], bool]:
    """Whether a service has an instance whose checks pass."""
    url = f"http://127.0.0.1:{registry.http_port}/v1/health/service/{service}?passing"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ready() -> bool:
        with opener.open(url, timeout=2) as answer:
            return bool(json.load(answer))

    return ready


def example_instances(services: int, instances: int, *, first: int = 0) -> list[Instance]:
    """What a middling site registers: names, addresses, two tags, a little meta; about 200 bytes each.

    The services are those from number `first` on. They have no port, or the registry would look at each when the
    generator that has registered them leaves, beside what is measured.
    """
    return [
        Instance(
            service=service_name(number),
            id=f"{service_name(number)}-{copy}",
            node=f"node-{(number * instances + copy) % 50}",
            address=f"10.{number >> 8 & 255}.{number & 255}.{copy + 1}",
            tags=("blue", "primary") if copy == 0 else ("blue", "replica"),
            meta={"version": "1.4.2", "team": "pictures", "protocol": "http"},
            zone=f"zone-{copy % 3}",
            version="1.4.2",
        )
        for number in range(first, first + services)
        for copy in range(instances)
    ]


def service_name(number: int) -> str:
    return f"service-{number:05}"
