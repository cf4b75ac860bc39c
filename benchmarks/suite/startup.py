"""How soon is a server there? From its start until it answers, with nothing stored; `memory` has starts with data."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

from benchmarks.case import Case, Contender, Measure, Metric, Scale, Turn
from benchmarks.contenders import etcd, homeport, proxies, zookeeper
from benchmarks.servers import Server, answers
from benchmarks.stage import Stage
from homeport.client.core.model import Instance

_START: Final = (Metric("start", "s", "lower", headline=True), Metric("memory", "MiB", "lower", headline=True))
_SERVICE: Final = "orders"

# Starts a server and returns it ready.
Start = Callable[[Stage], Server]


def cases(scale: Scale) -> tuple[Case, ...]:
    """Registries, and proxies."""
    return (
        Case(
            "startup/registry",
            "how long does a registry take from its start until it accepts connections?",
            "an empty data folder; a new process each turn, its programs in the page cache",
            "homeport durable",
            (
                _contender("homeport durable", "homeport serve --data-dir, with its HTTP and RPC fronts", _durable),
                _contender("homeport memory", "homeport serve, in memory", lambda stage: homeport.serve(stage).server),
                _contender(
                    "etcd",
                    etcd.ABOUT,
                    lambda stage: etcd.serve(stage, stage.new_folder("etcd")).server,
                    etcd.missing(),
                ),
                _contender(
                    "zookeeper", zookeeper.ABOUT, lambda stage: zookeeper.serve(stage).server, zookeeper.missing()
                ),
            ),
            metrics=_START,
        ),
        Case(
            "startup/proxy",
            "how long does a proxy take from its start until it has passed on a request?",
            "one endpoint; a new process each turn, its programs in the page cache",
            "homeport",
            (
                Contender("homeport", "homeport sidecar: the endpoint comes from a registry that runs", _sidecar()),
                *(
                    Contender(name, about, _proxy(start), proxies.missing(name))
                    for name, about, start in (
                        ("nginx", "nginx as proxy, one worker", proxies.nginx),
                        ("haproxy", "HAProxy, one thread", proxies.haproxy),
                        ("envoy", "Envoy, one worker", proxies.envoy),
                        ("caddy", "Caddy, on one core", proxies.caddy),
                    )
                ),
            ),
            metrics=_START,
        ),
        Case(
            "startup/import",
            "how much longer does a program take to start with Homeport in it?",
            "a new Python each turn, its modules in the page cache",
            "import homeport.client",
            (
                Contender("import asyncio", "the floor of an asyncio program", _ended("import asyncio")),
                Contender("import homeport.client", "the client", _ended("import homeport.client")),
                Contender("import blocking", "homeport.client.blocking", _ended("import homeport.client.blocking")),
                Contender("homeport --help", "the command", _ended("from homeport.mesh.cli import main; main()")),
            ),
            metrics=(Metric("start", "s", "lower", headline=True),),
        ),
    )


def _ended(code: str) -> Callable[[Stage], AbstractContextManager[Measure]]:
    """From the start of an interpreter until it has done this and ended."""

    def turn() -> Turn:
        started_at = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, "--help"], stdout=subprocess.DEVNULL, check=True)
        return Turn({"start": time.perf_counter() - started_at})

    @contextmanager
    def turns(_stage: Stage) -> Iterator[Measure]:
        yield turn

    return turns


def _contender(name: str, about: str, start: Start, missing: str = "") -> Contender:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        yield lambda: _turn(start(stage))

    return Contender(name, about, turns, missing)


def _turn(server: Server) -> Turn:
    with server:
        return Turn({"start": server.ready_s, "memory": server.rss_bytes / 2**20})


def _durable(stage: Stage) -> Server:
    return homeport.serve(stage, data_dir=stage.new_folder("homeport")).server


def _proxy(start: proxies.Start) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        below, ports = proxies.body_sink(stage, 1)
        with below:
            yield lambda: _turn(_passing(*start(stage, ports)))

    return turns


def _passing(server: Server, port: int) -> Server:
    """The same once it has passed on a request, not only accepts connections."""
    server.wait_ready(answers(f"http://127.0.0.1:{port}/", host=_SERVICE))
    return server


def _sidecar() -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        with ExitStack() as running:
            below, ports = proxies.body_sink(stage, 1)
            running.enter_context(below)
            registry = homeport.serve(stage, cores=stage.cores.upstream, name="registry")
            running.enter_context(registry.server)
            instance = Instance(service=_SERVICE, id="orders-1", address="127.0.0.1", port=ports[0])
            homeport.register(stage, registry, [instance])
            yield lambda: _turn(homeport.sidecar(stage, registry, _SERVICE)[0])

    return turns
