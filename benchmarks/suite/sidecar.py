"""What does a sidecar cost? Ours beside other proxies, in front of the same upstream, with nothing in between, too."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from benchmarks import proc, quota
from benchmarks.case import P50, P90, P99, SERVER_CPU, Case, Contender, Measure, Metric, Scale, Turn
from benchmarks.contenders import homeport, proxies
from benchmarks.load import driver
from benchmarks.load.plan import OpenLoop
from benchmarks.servers import MeasurementError, Server
from benchmarks.stage import Stage
from homeport.client.core.model import Instance
from homeport.sidecar.core.idempotency import META

_SERVICE: Final = "orders"
_ENDPOINTS: Final = 3
_IDLE: Final = 1000  # connections that were used once and are kept
_KIB: Final = 1024
_WORKER_SHARE: Final = 0.3  # so that two and their load find room on two cores
_LATENCIES: Final = (Metric("p50", "ms", "lower", headline=True), P90, Metric("p99", "ms", "lower", headline=True))
_MEMORY: Final = (
    Metric("memory", "MiB", "lower", headline=True),
    Metric("per_connection", "KiB", "lower"),
    Metric("empty", "MiB", "lower"),
)
_LOG: Final = ("--access-log", "/dev/null")  # the disk is not what is measured
_HEDGED: Final = ("--service", '*={"hedging": {"delay_s": 0.1}}')
_KEYED: Final = ("--service", '*={"idempotency": true}')
_REMEMBERS: Final = {META: "true"}  # the meta of an instance whose inbound remembers answers
_REMEMBER: Final = "--remember-answers"
_FEATURES: Final = (
    ("homeport", "homeport sidecar, with none of it", ()),
    ("hedging", "ready to ask a second instance after 100 ms, which no answer takes", _HEDGED),
    ("log", "with an access log in JSON", _LOG),
    ("log-common", "with an access log in the common format", (*_LOG, "--access-log-format", "common")),
    ("tracing", "with a span of its own in every trace, none sampled", ("--tracing", "0")),
    ("both", "with the JSON log and tracing", (*_LOG, "--tracing", "0")),
)
_SHARED: Final = "generator: wrk and the upstream, which share a core unless there is a third"

StartUpstream = Callable[[Stage, int], tuple[Server, list[int]]]


@dataclass(frozen=True)
class Running:
    """What a turn finds: the proxy (or the upstream itself), its port, and the upstream."""

    stage: Stage
    server: Server
    port: int
    upstream: Server


Load = Callable[[Running], Turn]


def cases(scale: Scale) -> tuple[Case, ...]:
    """Small bodies, where the work is per request; large ones, where it is per byte; fixed rates; and memory."""
    long_s = 2 * scale.turn_s  # where the slowest of a hundred must not be a few, or hundreds of connections are opened
    through_two = _open(1000, 16, long_s, _KIB)
    throughput = "how many requests can a proxy pass on, and what does each cost?"
    return (
        *(
            Case(
                name,
                throughput,
                f"wrk, {connections} connections, {what}; three endpoints of one upstream",
                "homeport",
                _contenders(
                    _wrk(path, connections, long_s if connections > 100 else scale.turn_s, body_bytes),
                    upstream,
                    everyone=path == "/" and not body_bytes,
                ),
                notes=(_SHARED,),
            )
            for name, connections, path, body_bytes, upstream, what in (
                ("sidecar/small", 32, "/", 0, proxies.upstream, f"GET of {len(proxies.SMALL_BODY)} bytes"),
                ("sidecar/small-512", 512, "/", 0, proxies.upstream, f"GET of {len(proxies.SMALL_BODY)} bytes"),
                ("sidecar/64KiB", 32, "/large", 0, proxies.upstream, "GET of 64 KiB"),
                ("sidecar/64KiB-up", 32, "/", 64 * _KIB, proxies.body_sink, "POST of 64 KiB"),
                ("sidecar/1MiB", 32, "/huge", 0, proxies.upstream, "GET of 1 MiB"),
                ("sidecar/1MiB-up", 32, "/", 1024 * _KIB, proxies.body_sink, "POST of 1 MiB"),
            )
        ),
        *(
            Case(
                f"sidecar/at-{rate}",
                "how long does a request take at a fixed rate, counted from when it was due?",
                f"{rate} requests/s, even intervals, {connections} connections, GET of {len(proxies.SMALL_BODY)} bytes",
                "homeport",
                _contenders(_open(rate, connections, long_s, 0), proxies.upstream),
                metrics=(*_LATENCIES, SERVER_CPU),
            )
            for rate, connections in ((1000, 16), (5000, 32))
        ),
        Case(
            "sidecar/both-sides",
            "what do the two sidecars of a call add, the caller's and the callee's?",
            "1,000 requests/s, even intervals, 16 connections, POST of 1 KiB; after Dapr's published protocol",
            "homeport",
            (
                _contender("homeport", "two homeport sidecars, outbound and inbound", _both, through_two),
                _contender("envoy", "two Envoys, one worker each", _two(proxies.envoy), through_two, "envoy"),
                _direct("no proxy; server CPU is the upstream's own", through_two, proxies.body_sink),
            ),
            metrics=(P50, P90, P99, SERVER_CPU),
        ),
        Case(
            "sidecar/workers",
            "what does a second worker bring?",
            f"wrk, 64 connections, small GETs; each worker has {_WORKER_SHARE:.0%} of a core",
            "two workers",
            tuple(
                Contender(
                    name,
                    f"homeport sidecar --workers {count}",
                    _workers(count, scale.turn_s),
                    driver.wrk_missing() or proxies.missing("nginx") or quota.missing(),
                )
                for name, count in (("two workers", 2), ("one worker", 1))
            ),
        ),
        Case(
            "sidecar/features",
            "what do hedging, an access log and traces cost a request that does not need them?",
            f"wrk, 32 connections, GET of {len(proxies.SMALL_BODY)} bytes; three endpoints of one upstream",
            "homeport",
            tuple(
                _contender(name, about, _with(*options), _wrk("/", 32, scale.turn_s, 0), upstream=proxies.upstream)
                for name, about, options in _FEATURES
            ),
            notes=(_SHARED,),
        ),
        Case(
            "sidecar/keyed",
            "what does it cost that a POST which may have run is repeated, and yet runs once?",
            "wrk, 32 connections, POST of 1 KiB through an outbound and an inbound; CPU of both",
            "homeport",
            tuple(
                _contender(name, about, start, _wrk("/", 32, scale.turn_s, _KIB))
                for name, about, start in (
                    ("homeport", "two homeport sidecars, no keys: a POST that may have run is not repeated", _both),
                    ("keys", "the outbound gives keys, the inbound passes them on", _both_keyed()),
                    ("keys kept", "and the inbound remembers its answers for 300 s", _both_keyed(kept_s=300)),
                )
            ),
            notes=(_SHARED,),
        ),
        Case(
            "sidecar/idle",
            f"how much memory do {_IDLE} idle connections take?",
            f"{_IDLE} connections, each used for one request and then kept; every turn starts the proxies anew",
            "homeport",
            _contenders(_idle, proxies.upstream, everyone=True, afresh=True)[:-1],
            metrics=_MEMORY,
            warm_ups=0,
        ),
    )


def _contenders(
    load: Load, upstream: StartUpstream, *, everyone: bool = False, afresh: bool = False
) -> tuple[Contender, ...]:
    """Who is asked; `everyone`: also those that are known by now to be far behind; `afresh`: as in `_contender`."""
    about = "homeport sidecar: endpoints from the registry, two choices, retries and outlier ejection on"
    plain = "aiohttp server and ClientSession on uvloop, round robin"
    pooled = "nginx as proxy, one worker, kept-alive upstreams"
    far = [
        ("aiohttp", plain, proxies.aiohttp, "nginx"),
        ("caddy", "Caddy, on one core, least_conn", proxies.caddy, "caddy"),
    ]
    named = [
        ("homeport", about, _homeport, "nginx"),
        ("nginx", pooled, proxies.nginx, "nginx"),
        ("haproxy", "HAProxy, one thread, leastconn", proxies.haproxy, "haproxy"),
        ("envoy", "Envoy, one worker, LEAST_REQUEST", proxies.envoy, "envoy"),
        *(far if everyone else []),
    ]
    return (
        *(
            _contender(name, what, start, load, program, upstream, afresh=afresh)
            for name, what, start, program in named
        ),
        _direct("no proxy; server CPU is the upstream's own", load, upstream),
    )


def _contender(
    name: str,
    about: str,
    start: proxies.Start,
    load: Load,
    program: str = "nginx",
    upstream: StartUpstream = proxies.body_sink,
    *,
    afresh: bool = False,
) -> Contender:
    """A proxy; with `afresh` it is started anew for every turn, else once."""

    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        below, ports = upstream(stage, _ENDPOINTS)

        def anew() -> Turn:
            server, port = start(stage, ports)
            with server:
                return load(Running(stage, server, port, below))

        with below:
            if afresh:
                yield anew
                return
            server, port = start(stage, ports)
            with server:
                yield lambda: load(Running(stage, server, port, below))

    return Contender(name, about, turns, driver.wrk_missing() or proxies.missing("nginx") or proxies.missing(program))


def _direct(about: str, load: Load, upstream: StartUpstream) -> Contender:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        below, ports = upstream(stage, _ENDPOINTS)
        with below:
            yield lambda: load(Running(stage, below, ports[0], below))

    return Contender("direct", about, turns, driver.wrk_missing() or proxies.missing("nginx"))


# --- ours -------------------------------------------------------------------------------------------------------


def _registry(stage: Stage, ports: Sequence[int], meta: Mapping[str, str] = MappingProxyType({})) -> homeport.Registry:
    """The registry runs beside the upstream: it is idle, and no part of a sidecar's cost."""
    registry = homeport.serve(stage, cores=stage.cores.upstream, name="registry")
    try:
        instances = [
            Instance(service=_SERVICE, id=f"orders-{port}", address="127.0.0.1", port=port, meta=dict(meta))
            for port in ports
        ]
        homeport.register(stage, registry, instances)
    except BaseException:
        registry.server.stop()
        raise
    return registry


def _homeport(
    stage: Stage, upstreams: Sequence[int], *options: str, meta: Mapping[str, str] = MappingProxyType({})
) -> tuple[Server, int]:
    registry = _registry(stage, upstreams, meta)
    with ExitStack() as undo:
        undo.enter_context(registry.server)
        server, port = homeport.sidecar(stage, registry, _SERVICE, *options)
        undo.pop_all()
    server.with_it(registry.server)
    return server, port


def _with(*options: str) -> proxies.Start:
    """Ours, with options."""
    return lambda stage, upstreams: _homeport(stage, upstreams, *options)


def _both(
    stage: Stage, upstreams: Sequence[int], outbound_options: Sequence[str] = (), inbound_options: Sequence[str] = ()
) -> tuple[Server, int]:
    """An outbound in front of an inbound: the caller's sidecar and the callee's."""
    with ExitStack() as undo:
        empty = homeport.serve(stage, cores=stage.cores.upstream, name="empty-registry")
        undo.enter_context(empty.server)
        inbound, inbound_port = homeport.inbound(stage, empty, upstreams[0], *inbound_options)
        undo.enter_context(inbound)
        meta = _REMEMBERS if _REMEMBER in inbound_options else {}
        outbound, port = _homeport(stage, [inbound_port], *outbound_options, meta=meta)
        undo.pop_all()
    outbound.with_it(inbound)
    outbound.with_it(empty.server)
    return outbound, port


def _both_keyed(kept_s: int = 0) -> proxies.Start:
    """The same, where the outbound gives each POST a key, and the inbound remembers answers by it, if asked."""
    remembering = (_REMEMBER, str(kept_s)) if kept_s else ()
    return lambda stage, upstreams: _both(stage, upstreams, _KEYED, remembering)


def _two(start: proxies.Start) -> proxies.Start:
    """The same proxy twice, one in front of the other."""

    def both(stage: Stage, upstreams: Sequence[int]) -> tuple[Server, int]:
        second, second_port = start(stage, upstreams[:1])
        with ExitStack() as undo:
            undo.enter_context(second)
            first, port = start(stage, [second_port])
            undo.pop_all()
        first.with_it(second)
        return first, port

    return both


def _workers(count: int, turn_s: float) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        below, ports = proxies.upstream(stage, _ENDPOINTS)
        with below:
            registry = _registry(stage, ports)
            with registry.server:
                everywhere = frozenset(os.sched_getaffinity(0))
                workers = ("--workers", str(count))
                server, port = homeport.sidecar(stage, registry, _SERVICE, *workers, cores=everywhere)
                with server:
                    working = proc.tree(proc.read_all(), server.pid)
                    pids = [stat.pid for stat in working if stat.pid != server.pid or count == 1][-count:]
                    load = _wrk("/", 64, turn_s, 0)
                    with quota.held(pids, _WORKER_SHARE):
                        yield lambda: load(Running(stage, server, port, below))

    return turns


# --- loads ------------------------------------------------------------------------------------------------------


def _wrk(path: str, connections: int, turn_s: float, body_bytes: int) -> Load:
    def load(it: Running) -> Turn:
        return driver.wrk(
            it.port,
            [path],
            cores=it.stage.cores,
            servers=it.server.pids,
            beside=[it.upstream.pid],
            connections=connections,
            duration_s=turn_s,
            host=_SERVICE,
            body_bytes=body_bytes,
        )

    return load


def _open(rate: int, connections: int, turn_s: float, body_bytes: int) -> Load:
    def load(it: Running) -> Turn:
        plan = OpenLoop(
            port=it.port, rate=rate, connections=connections, duration_s=turn_s, host=_SERVICE, body_bytes=body_bytes
        )
        return driver.open_loop(plan, it.stage.generators, it.server.pids)

    return load


def _idle(it: Running) -> Turn:
    empty_bytes = it.server.rss_bytes
    request = f"GET / HTTP/1.1\r\nHost: {_SERVICE}\r\n\r\n".encode()
    with ExitStack() as kept:
        for _ in range(_IDLE):
            connection = kept.enter_context(socket.create_connection(("127.0.0.1", it.port)))
            connection.sendall(request)
            if not connection.recv(64 * _KIB).startswith(b"HTTP/1.1 200"):
                raise MeasurementError("a request was not answered with 200")
        used_bytes = it.server.rss_bytes
    return Turn(
        {
            "memory": used_bytes / 2**20,
            "per_connection": (used_bytes - empty_bytes) / _IDLE / _KIB,
            "empty": empty_bytes / 2**20,
        }
    )
