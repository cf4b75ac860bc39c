"""What does a sidecar cost? Ours beside other proxies, in front of the same upstream, with nothing in between, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from benchmarks.case import Case, Contender, Measure, Scale, Turn
from benchmarks.contenders import homeport, proxies
from benchmarks.load import driver
from benchmarks.servers import Server, Stage
from homeport.client.core.model import Instance

_SERVICE: Final = "orders"
_ENDPOINTS: Final = 3
_CONNECTIONS: Final = 32

StartProxy = Callable[[Stage, Sequence[int]], tuple[Server, int]]


def cases(scale: Scale) -> tuple[Case, ...]:
    """Small bodies, where the work is per request, and large ones, where it is per byte."""
    question = "how many requests can a proxy pass on, and what does each cost?"
    load = f"wrk, {_CONNECTIONS} connections, GET of {{}}; three endpoints of one nginx upstream"
    note = "generator: wrk and the upstream, which share a core unless there is a third"
    return (
        Case(
            "sidecar/small",
            question,
            load.format(f"{len(proxies.SMALL_BODY)} bytes"),
            "homeport",
            _contenders("/", scale.turn_s),
            notes=(note,),
        ),
        Case(
            "sidecar/64KiB",
            question,
            load.format("64 KiB"),
            "homeport",
            _contenders("/large", scale.turn_s),
            notes=(note,),
        ),
    )


def _contenders(path: str, turn_s: int) -> tuple[Contender, ...]:
    def contender(name: str, about: str, start: StartProxy, missing: str = "") -> Contender:
        return Contender(
            name, about, _turns(start, path, turn_s), driver.wrk_missing() or proxies.missing("nginx") or missing
        )

    return (
        contender("homeport", "homeport sidecar, endpoints from the registry, two choices, retries on", _homeport),
        contender("aiohttp", "aiohttp server and ClientSession on uvloop, round robin", proxies.aiohttp),
        contender("nginx", "nginx as proxy, one worker, keep-alive upstreams", proxies.nginx),
        contender("haproxy", "HAProxy, one thread, leastconn", proxies.haproxy, proxies.missing("haproxy")),
        contender("envoy", "Envoy, one worker, LEAST_REQUEST", proxies.envoy, proxies.missing("envoy")),
        Contender(
            "direct",
            "no proxy; server CPU is the upstream's own",
            _direct(path, turn_s),
            driver.wrk_missing() or proxies.missing("nginx"),
        ),
    )


def _homeport(stage: Stage, upstreams: Sequence[int]) -> tuple[Server, int]:
    """The registry runs beside the upstream: it is idle, and no part of a sidecar's cost."""
    registry = homeport.serve(stage, cores=stage.cores.upstream, name="registry")
    try:
        instances = [
            Instance(service=_SERVICE, id=f"orders-{port}", address="127.0.0.1", port=port) for port in upstreams
        ]
        homeport.register(stage, registry, instances)
        server, port = homeport.sidecar(stage, registry, _SERVICE)
    except BaseException:
        registry.server.stop()
        raise
    server.with_it(registry.server)
    return server, port


def _turns(start: StartProxy, path: str, turn_s: int) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        upstream, ports = proxies.upstream(stage, _ENDPOINTS)
        with upstream:
            server, port = start(stage, ports)
            with server:

                def measure() -> Turn:
                    return driver.wrk(
                        port,
                        [path],
                        cores=stage.cores,
                        servers=[server.pid],
                        beside=[upstream.pid],
                        connections=_CONNECTIONS,
                        duration_s=turn_s,
                        host=_SERVICE,
                    )

                yield measure

    return turns


def _direct(path: str, turn_s: int) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        upstream, ports = proxies.upstream(stage, _ENDPOINTS)
        with upstream:

            def measure() -> Turn:
                return driver.wrk(
                    ports[0],
                    [path],
                    cores=stage.cores,
                    servers=[upstream.pid],
                    beside=[upstream.pid],
                    connections=_CONNECTIONS,
                    duration_s=turn_s,
                )

            yield measure

    return turns
