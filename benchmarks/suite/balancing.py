"""What does choosing an endpoint cost, and what does each guard of a service cost a request?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from benchmarks.case import RATE, SERVER_CPU, Case, Contender, Measure, Scale
from benchmarks.contenders import guarded, proxies
from benchmarks.contenders.program import program
from benchmarks.load import driver
from benchmarks.stage import Stage

_CONNECTIONS: Final = 32
_ENDPOINTS: Final = 3


def cases(scale: Scale) -> tuple[Case, ...]:
    """Picks among few and among many, in process; and whole requests with one guard after the other."""
    return (
        *(
            Case(
                f"balancing/pick-{count}",
                "how many endpoints a second can one Python process pick?",
                f"{count} endpoints of equal weight with 0 to 3 requests under way, a thousand keys",
                "least-request",
                tuple(
                    Contender(policy, about, program("picks", policy, count, turn_s=scale.turn_s))
                    for policy, about in (
                        ("choice", "random.choice: no policy at all"),
                        ("least-request", "of two, the less busy; the default"),
                        ("peak-ewma", "of two, the smaller latency x queue"),
                        ("round-robin", "smooth weighted turns"),
                        ("maglev", "by key, with bounded load"),
                    )
                ),
                metrics=(RATE, SERVER_CPU),
            )
            for count in (3, 100)
        ),
        Case(
            "balancing/resolver",
            "how many instances a second can one program pick?",
            f"one coroutine, {scale.services} services of {scale.instances} instances, asked for in turn",
            "pick",
            (
                Contender(
                    "dict",
                    "dict[str, tuple]: the ceiling, which balances nothing",
                    program("in_process", "dict", scale.services, scale.instances, turn_s=scale.turn_s),
                ),
                Contender(
                    "pick",
                    "Resolver.pick: of two, the less busy",
                    program("in_process", "pick", scale.services, scale.instances, turn_s=scale.turn_s),
                ),
                Contender(
                    "done",
                    "the same in its block, whose end is counted as an outcome",
                    program("in_process", "done", scale.services, scale.instances, turn_s=scale.turn_s),
                ),
            ),
            metrics=(RATE, SERVER_CPU),
        ),
        Case(
            "balancing/guards",
            "what does each guard cost a request that goes well?",
            f"wrk, {_CONNECTIONS} connections, GET of {len(proxies.SMALL_BODY)} bytes; {_ENDPOINTS} endpoints",
            "none",
            tuple(
                Contender(guards, about, _requests(guards, scale), driver.wrk_missing() or proxies.missing("nginx"))
                for guards, about in (
                    ("none", "least request, nothing else"),
                    ("budget", "retries with their budget"),
                    ("outliers", "outlier ejection"),
                    ("circuit", "circuit limits"),
                    ("adaptive", "circuit limits that follow how long answers take"),
                    ("peak-ewma", "the policy that times answers"),
                    ("all", "the defaults: least request, retries, ejection, limits"),
                )
            ),
            notes=("generator: wrk and the upstream, which share a core unless there is a third",),
        ),
    )


def _requests(guards: str, scale: Scale) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        upstream, ports = proxies.upstream(stage, _ENDPOINTS)
        with upstream:
            server, port = guarded.start(stage, guards, ports)
            with server:
                yield lambda: driver.wrk(
                    port,
                    ["/"],
                    cores=stage.cores,
                    servers=[server.pid],
                    beside=[upstream.pid],
                    connections=_CONNECTIONS,
                    duration_s=scale.turn_s,
                    host=guarded.SERVICE,
                )

    return turns
