"""What a benchmark is made of: cases, each with a question, a load, and contenders that take turns.

A contender starts its servers once and yields a function that measures one turn; the rounds call it again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Final

import msgspec

from benchmarks.spread import Better
from benchmarks.stage import Stage


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of figure; a headline is also compared in the table, the others only in the JSON."""

    name: str
    unit: str
    better: Better
    headline: bool = False


RATE: Final = Metric("rate", "/s", "higher", headline=True)
SERVER_CPU: Final = Metric("server_cpu", "us/op", "lower", headline=True)
P50: Final = Metric("p50", "ms", "lower")
P90: Final = Metric("p90", "ms", "lower")
P99: Final = Metric("p99", "ms", "lower")
LOAD_METRICS: Final = (RATE, SERVER_CPU, P50, P99)


@dataclass(frozen=True)
class Turn:
    """What one contender did in one round: figures by metric name; those it cannot have are absent."""

    figures: dict[str, float]
    server_share: float | None = None  # how much of their core the servers used, 0 to 1
    generator_share: float | None = None  # and the busiest generator of its own


@dataclass(frozen=True)
class Unfinished:
    """A turn whose load is over, while something that was asked still waits: the next one need not wait as well.

    Attributes:
        done: whether there is no more waiting.
        finish: waits for the rest of it.
        held: what it needs until then; left in any case, and never while another turn is under load.
    """

    done: Callable[[], bool]
    finish: Callable[[], Turn]
    held: ExitStack


Measure = Callable[[], Turn | Unfinished]


@dataclass(frozen=True)
class Contender:
    """Somebody who takes part.

    Attributes:
        about: what it is and what is switched on.
        start: starts its servers and yields the measurement of a turn.
        missing: why it cannot take part here; empty if it can.
        warm_ups: turns of its own before the first round, that count as little as that one.
    """

    name: str
    about: str
    start: Callable[[Stage], AbstractContextManager[Measure]]
    missing: str = ""
    warm_ups: int = 0


@dataclass(frozen=True)
class Case:
    """One question, asked of several contenders under the same load.

    Attributes:
        reference: the contender that the others are compared with.
        rounds_max: fewer rounds than asked for, where a turn takes long.
        rounds_factor: so many times as many as asked for, where one says little: it depends on where in a period it is.
        sizes: what the contenders of a case differ in, by name, if it is a number: costs are fitted to it.
        warm_ups: so many first rounds are dropped; none where every turn starts afresh.
        together: the turns of a round are taken at the same time, since what they measure is waiting, not work. What
            would get in each other's way they do first: `Stage.abreast` is where they wait for one another.
    """

    name: str
    question: str
    load: str
    reference: str
    contenders: tuple[Contender, ...]
    metrics: tuple[Metric, ...] = LOAD_METRICS
    rounds_max: int = 1000
    rounds_factor: int = 1
    warm_ups: int = 1
    together: bool = False
    notes: tuple[str, ...] = field(default=())
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """How much is done; `--quick` does less of it, and its figures are for looking, not for quoting."""

    rounds: int = 5
    turn_s: float = 0.5  # thousands of operations; what one turn is off by, the next rounds are not
    services: int = 1000
    instances: int = 3
    keys: int = 100_000
    watches: int = 10_000
    watch_connections: int = 100
    deliveries: int = 20  # puts per turn of the fan-out
    checks: int = 10_000
    registrations: int = 10_000  # a turn
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)  # instances of a registry that grows
    simulated: int = 1_000_000  # instances
    cluster_s: int = 600  # of a cluster under renewals, half of it before a replica is killed
    cluster_loads: tuple[tuple[int, float], ...] = ((20_000, 10.0), (100_000, 60.0))  # instances, and their TTL in s


FULL: Final = Scale()
JVM_WARM_UPS: Final = 6  # turns of a JVM alone, before the first round: until it has compiled what is hot
QUICK: Final = Scale(
    rounds=1,
    turn_s=1.0,
    services=200,
    keys=20_000,
    watches=2_000,
    watch_connections=20,
    deliveries=20,
    checks=2_000,
    registrations=2_000,
    sizes=(1_000, 10_000),
    simulated=50_000,
    cluster_s=60,
    cluster_loads=((2_000, 10.0), (5_000, 30.0)),
)

# The questions that most people ask: rows of README's table, each a case, its metric, and what that is. A quick run of
# everything is a run of these.
HEADLINES: Final = (
    ("lookups/network", "rate", "lookups of a service a second"),
    ("puts/64x16", "server_cpu", "server CPU of a durable put"),
    ("puts/1x1", "rate", "durable puts a second, each waiting for the one before"),
    ("kv/mix", "rate", "gets and puts of keys a second, four to one"),
    ("renewals", "server_cpu", "server CPU of a lease renewal"),
    ("registration", "register_cpu", "server CPU of a durable registration"),
    ("fanout", "last_delivery", "a put to its last of many watchers"),
    ("departure/killed", "last_client_knows", "until the last client knows that an instance was killed"),
    ("departure/stopped", "last_client_knows", "the same, and it hangs; leases of three seconds"),
    ("failover/stopped", "failed", "failed requests when one of three instances hangs"),
    ("sidecar/small", "server_cpu", "proxy CPU of a small request, 32 connections"),
    ("sidecar/small-512", "server_cpu", "proxy CPU of a small request, 512 connections"),
    ("sidecar/64KiB", "server_cpu", "proxy CPU of 64 KiB"),
    ("dns/A", "server_cpu", "server CPU of a DNS answer"),
    ("startup/registry", "start", "from a registry's start until it accepts connections"),
)
