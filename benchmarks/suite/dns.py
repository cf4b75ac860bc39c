"""How many DNS questions can be answered, and what does each cost? Beside dnsmasq's local records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.case import RATE, SERVER_CPU, Case, Contender, Measure, Metric, Scale
from benchmarks.contenders import dnsmasq, homeport
from benchmarks.load.dnsperf import dnsperf, missing
from benchmarks.servers import Server, free_port
from benchmarks.stage import Stage

_IN_FLIGHT: Final = 64
_LATENCY: Final = Metric("latency", "ms", "lower")

Start = Callable[[Stage, Scale], tuple[Server, int]]


def cases(scale: Scale) -> tuple[Case, ...]:
    """Addresses, and servers with their addresses."""
    load = f"dnsperf, UDP with EDNS, {_IN_FLIGHT} in flight, {{}} of {scale.services} services of {scale.instances}"
    question = "how many DNS questions a second can be answered, and what does each cost?"
    return tuple(
        Case(
            f"dns/{kind}",
            question,
            load.format(kind),
            "homeport",
            (
                Contender(
                    "homeport",
                    "homeport serve, in memory, a new order each time",
                    _turns(_homeport, kind, scale),
                    missing(),
                ),
                Contender(
                    "dnsmasq",
                    "dnsmasq, host-record and srv-host, nothing forwarded",
                    _turns(_dnsmasq, kind, scale),
                    missing() or dnsmasq.missing(),
                ),
            ),
            metrics=(RATE, SERVER_CPU, _LATENCY),
        )
        for kind in ("A", "SRV")
    )


def _homeport(stage: Stage, scale: Scale) -> tuple[Server, int]:
    port = free_port()
    registry = homeport.serve(stage, dns_port=port)
    try:
        homeport.register(stage, registry, homeport.example_instances(scale.services, scale.instances))
    except BaseException:
        registry.server.stop()
        raise
    return registry.server, port


def _dnsmasq(stage: Stage, scale: Scale) -> tuple[Server, int]:
    return dnsmasq.serve(stage, homeport.example_instances(scale.services, scale.instances))


def _turns(start: Start, kind: str, scale: Scale) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        server, port = start(stage, scale)
        with server:
            questions: Path = stage.new_folder("questions") / kind
            names = (homeport.service_name(number) for number in range(scale.services))
            questions.write_text("".join(f"{name}.service.homeport {kind}\n" for name in names))
            yield lambda: dnsperf(
                port,
                questions,
                cores=stage.cores,
                server=server.pid,
                in_flight=_IN_FLIGHT,
                duration_s=scale.turn_s,
            )

    return turns
