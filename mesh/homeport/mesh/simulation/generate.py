"""A scenario from a seed: swarm testing (Groce et al., "Swarm Testing", 2012).

Each run has a random half of all features switched on, and none of the others: a fault that would always mask another
is absent in half of the runs, and one that needs quiet around it gets that. All is drawn here, before the run, so that
a scenario is a list that can be made shorter.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from homeport.mesh.simulation.app import BAD, GOOD
from homeport.mesh.simulation.scenario import Scenario, Step, StoreKind

FAULTS: Final = (
    "crash",
    "power cuts",
    "pauses",
    "partitions",
    "one-way partitions",
    "cuts",
    "tears",
    "slow links",
    "stalled connections",
    "full disks",
    "broken disks",
    "slow disks",
    "etcd away",
    "etcd silent",
    "etcd compacts",
    "stale replicas",
    "compaction",
    "deaf watchers",
)
WORK: Final = (
    "traffic",
    "bad applications",
    "keys",
    "storms",
    "locks",
    "fair locks",
    "sessions",
    "elections",
    "deploys",
    "churn",
    "fleet",
)
LENGTH_S: Final = (6.0, 16.0)
FAULT_S: Final = (0.3, 1.0, 3.0, 6.0, 9.0)
KEYS: Final = ("w/a", "w/b", "x/c")
SERVICES: Final = ("orders", "checked")
SESSION_ENDS_S: Final = 19.0  # a moment before a session of ten seconds does that nobody renews
METHODS: Final = ("GET", "GET", "POST", "POST", "PUT", "DELETE")


class _Plan:
    """A scenario being made."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"{seed}/scenario")
        rng = self.rng
        self.seed = seed
        self.store: StoreKind = rng.choice(("memory", "journal", "journal", "etcd", "etcd"))
        self.length_s = round(rng.uniform(*LENGTH_S), 1)
        self.on = [feature for feature in (*FAULTS, *WORK) if rng.random() < 0.5]
        self.steps: list[Step] = []
        self.registries = rng.choice((2, 3)) if self.store == "etcd" else 1
        self.instances: dict[str, int] = {}
        self.callers = self.writers = self.watchers = self.lockers = self.fleet = 0

    def has(self, feature: str) -> bool:
        return feature in self.on

    def at(self, most_s: float | None = None) -> float:
        return round(self.rng.uniform(0.0, most_s or self.length_s), 3)

    def add(self, kind: str, *, at: float | None = None, **fields: object) -> None:
        self.steps.append(Step(self.at() if at is None else at, kind, **fields))  # type: ignore[arg-type]

    def some(self, least: int, most: int) -> range:
        return range(self.rng.randint(least, most))

    def registry(self) -> str:
        return f"r{self.rng.randint(1, self.registries)}"

    def one_of(self, kind: str, count: int) -> str:
        return f"{kind}{self.rng.randint(1, count)}"

    def instance(self) -> str:
        service = self.rng.choice(list(self.instances))
        return f"{service}#{self.rng.randint(1, self.instances[service])}"

    def anyone(self) -> str:
        kinds = {"caller": self.callers, "writer": self.writers, "watcher": self.watchers, "locker": self.lockers}
        names = [f"{kind}{number + 1}" for kind, count in kinds.items() for number in range(count)]
        names += [f"{service}#{number + 1}" for service, count in self.instances.items() for number in range(count)]
        names += ["fleet"] if self.fleet else []
        return self.rng.choice(names) if names else self.registry()


def generate(seed: int) -> Scenario:
    """The scenario of a seed."""
    plan = _Plan(seed)
    _parties(plan)
    for feature, work in _WORK.items():
        if plan.has(feature):
            work(plan)
    for feature, fault in _FAULTS.items():
        if plan.has(feature):
            fault(plan)
    return Scenario(
        seed=seed,
        store=plan.store,
        registries=plan.registries,
        features=tuple(plan.on),
        instances=plan.instances,
        callers=plan.callers,
        writers=plan.writers,
        watchers=plan.watchers,
        lockers=plan.lockers,
        fleet=plan.fleet,
        length_s=plan.length_s,
        steps=tuple(sorted(plan.steps, key=lambda step: step.at)),
    )


def _parties(plan: _Plan) -> None:
    rng = plan.rng
    if plan.has("traffic") or plan.has("bad applications") or plan.has("deploys") or plan.has("churn"):
        for service in SERVICES:
            if rng.random() < 0.7:
                plan.instances[service] = rng.randint(1, 3)
        if not plan.instances:
            plan.instances["orders"] = 2
        plan.callers = rng.randint(1, 2)
    if plan.has("keys") or plan.has("stale replicas"):
        plan.writers = rng.randint(1, 3)
    if plan.has("storms") or plan.has("deaf watchers") or plan.has("compaction"):
        plan.writers = max(1, plan.writers)
        plan.watchers = rng.randint(1, 3)
    if plan.has("locks") or plan.has("fair locks") or plan.has("sessions") or plan.has("elections"):
        plan.lockers = rng.randint(2, 3)
    if plan.has("fleet"):
        plan.fleet = 24


# --- work -----------------------------------------------------------------------------------------------------------


def _traffic(plan: _Plan, manners: tuple[str, ...] = GOOD) -> None:
    rng = plan.rng
    for _ in plan.some(15, 60):
        size = rng.choice((0, 10, 500, 5_000, 70_000 if rng.random() < 0.1 else 50))
        delay_ms = rng.choice((0, 0, 0, 5, 300, 1_500))
        plan.add(
            "call",
            who=plan.one_of("caller", plan.callers),
            whom=rng.choice(list(plan.instances)),
            what=f"{rng.choice(METHODS)} {rng.choice(manners)} {size} {delay_ms}",
            count=rng.choice((0, 20, 3_000)),
        )


def _bad_applications(plan: _Plan) -> None:
    _traffic(plan, BAD)


def _keys(plan: _Plan) -> None:
    for _ in plan.some(20, 80):
        kind = plan.rng.choice(("get", "get", "get", "put", "put", "delete", "cas", "cas", "cas"))
        who = plan.one_of("writer", plan.writers)
        key = plan.rng.choice(KEYS)
        if plan.rng.random() < 0.15:
            plan.add("glance", who=who, what=key)
        else:
            plan.add("key", who=who, what=f"{kind} {key}")


def _storms(plan: _Plan) -> None:
    for _ in plan.some(1, 3):
        count = plan.rng.choice((20, 60, 300))
        plan.add("storm", who=plan.one_of("writer", plan.writers), what="w/s", count=count)
    if plan.rng.random() < 0.15:  # more than a connection takes, for somebody who does not read
        at = plan.at()
        plan.add("pause", at=at, who=plan.one_of("watcher", plan.watchers), for_s=6.0)
        plan.add("storm", at=at + 0.1, who=plan.one_of("writer", plan.writers), what="w/large", count=600)


def _locks(plan: _Plan) -> None:
    for _ in plan.some(3, 10):
        plan.add(
            "lock",
            who=plan.one_of("locker", plan.lockers),
            whom=plan.rng.choice(("a", "b")),
            what=plan.rng.choice(("release", "silence")),
            for_s=plan.rng.choice((0.1, 1.0, 4.0)),
        )


def _fair(plan: _Plan) -> None:
    for _ in plan.some(3, 10):
        who, for_s = plan.one_of("locker", plan.lockers), plan.rng.choice((0.1, 1.0, 4.0))
        plan.add("fair", who=who, whom=plan.rng.choice(("a", "b")), for_s=for_s)


def _sessions(plan: _Plan) -> None:
    for _ in plan.some(3, 8):
        plan.add(
            "session",
            who=plan.one_of("locker", plan.lockers),
            whom="a",
            what=plan.rng.choice(("release", "destroy", "destroy", "silence")),
            for_s=plan.rng.choice((0.1, 1.0, 2.0)),
            count=plan.rng.randint(0, 5),
        )
    if plan.rng.random() < 0.4:  # one that ends by itself, and others at its lock as soon as that is free, or sooner
        plan.add("session", at=0.0, who="locker1", whom="b", what="silence")
        for number in range(16):
            at = round(SESSION_ENDS_S + 0.4 * number + plan.rng.uniform(0.0, 0.4), 3)
            plan.add("session", at=at, who="locker2", whom="b", what="release", count=plan.rng.randint(0, 5))


def _elections(plan: _Plan) -> None:
    for _ in plan.some(1, 3):
        at = plan.at()
        for number in range(plan.lockers):
            plan.add("elect", at=at, who=f"locker{number + 1}", whom="a", for_s=plan.rng.choice((0.2, 1.0, 2.0)))


def _deploys(plan: _Plan) -> None:
    for number in plan.some(1, 2):
        plan.add("deploy", who=plan.rng.choice(list(plan.instances)), what=f"new{number}-")


def _churn(plan: _Plan) -> None:
    if plan.rng.random() < 0.3:  # a follower that cannot say that it has acted on a drain
        at = plan.at()
        plan.add("partition", at=at, who=plan.one_of("caller", plan.callers), for_s=9.0)
        plan.add("stop", at=at + 0.1, who=plan.instance())
    for _ in plan.some(2, 6):
        who = plan.instance()
        kind = plan.rng.choice(("start", "stop", "stop", "crash", "crash"))
        plan.add(kind, who=who)
        if kind == "stop":  # while it drains
            _calls_at(plan, plan.steps[-1].at, who.partition("#")[0])
        if kind != "start" and plan.rng.random() < 0.6:
            plan.add("start", at=plan.steps[-1].at + plan.rng.choice((0.5, 4.0, 8.0)), who=who)


def _calls_at(plan: _Plan, at: float, service: str) -> None:
    for _ in range(6):
        who = plan.one_of("caller", plan.callers)
        when = round(at + plan.rng.uniform(0.05, 2.5), 3)
        plan.add("call", at=when, who=who, whom=service, what="GET length 10 300")


def _fleet(plan: _Plan) -> None:
    if plan.rng.random() < 0.5:
        plan.add("partition", who="fleet", for_s=plan.rng.choice((4.0, 9.0)))


# --- faults ---------------------------------------------------------------------------------------------------------


def _last(plan: _Plan) -> float:
    return plan.rng.choice(FAULT_S)


def _crash(plan: _Plan) -> None:
    for _ in plan.some(1, 3):
        plan.add("crash", who=plan.registry(), for_s=plan.rng.choice((0.1, 1.0, 5.0)))


def _power(plan: _Plan) -> None:
    for _ in plan.some(1, 2):
        at = max(0.01, plan.at())
        plan.add("crash", at=at, who=plan.registry(), what="power", for_s=plan.rng.choice((0.5, 3.0)))
        if plan.writers:  # something is on its way to the disk when it happens
            before = round(at - plan.rng.uniform(0.001, 0.006), 6)
            plan.add("storm", at=before, who=plan.one_of("writer", plan.writers), what="w/p", count=5)


def _pauses(plan: _Plan) -> None:
    for _ in plan.some(1, 3):
        plan.add("pause", who=plan.registry() if plan.rng.random() < 0.5 else plan.anyone(), for_s=_last(plan))


def _partitions(plan: _Plan) -> None:
    for _ in plan.some(1, 3):
        whom = plan.registry() if plan.rng.random() < 0.7 else ""
        plan.add("partition", who=plan.anyone(), whom=whom, for_s=_last(plan))


def _one_way(plan: _Plan) -> None:
    for _ in plan.some(1, 2):
        pair = [plan.anyone(), plan.registry()]
        plan.rng.shuffle(pair)
        plan.add("partition", who=pair[0], whom=pair[1], what="one way", for_s=_last(plan))


def _cuts(plan: _Plan) -> None:
    for _ in plan.some(1, 4):
        plan.add("cut", who=plan.anyone(), whom=plan.registry(), for_s=plan.rng.choice((0.0, 0.2, 2.0)))


def _tears(plan: _Plan) -> None:
    for _ in plan.some(1, 4):
        plan.add("tear", who=plan.rng.choice((plan.registry(), plan.anyone())), count=plan.rng.choice((1, 7, 30, 200)))


def _slow_links(plan: _Plan) -> None:
    for _ in plan.some(1, 2):
        plan.add("slow link", who=plan.anyone(), whom=plan.registry(), for_s=_last(plan))


def _stalls(plan: _Plan) -> None:
    for _ in plan.some(1, 2):
        plan.add("stall", who=plan.rng.choice((plan.registry(), plan.anyone())), for_s=_last(plan))


def _disk(*kinds: str) -> Callable[[_Plan], None]:
    def disk(plan: _Plan) -> None:
        for _ in plan.some(1, 2):
            what, skip = plan.rng.choice(kinds), plan.rng.choice((0, 0, 1, 3, 8))
            plan.add("disk", who=plan.registry(), what=what, for_s=plan.rng.choice((0.3, 2.0, 5.0)), count=skip)

    return disk


def _etcd(what: str) -> Callable[[_Plan], None]:
    def etcd(plan: _Plan) -> None:
        for _ in plan.some(1, 2):
            plan.add("etcd", who=plan.registry(), what=what, for_s=_last(plan), count=plan.rng.randint(1, 3))

    return etcd


def _stale(plan: _Plan) -> None:
    """A replica does not hear of writes that a client has seen, and then is the only one which that client reaches."""
    if plan.store != "etcd" or not plan.writers:
        return
    for _ in plan.some(1, 2):
        at, stale, who = plan.at(), plan.registry(), plan.one_of("writer", plan.writers)
        key = plan.rng.choice(KEYS)
        plan.add("etcd", at=at, who=stale, what="away", for_s=6.0)
        for number in range(3):
            plan.add("key", at=at + 0.3 + 0.3 * number, who=who, what=f"put {key}")
            plan.add("glance", at=at + 0.4 + 0.3 * number, who=who, what=key)
        for number in range(plan.registries):
            if (other := f"r{number + 1}") != stale:
                plan.add("cut", at=at + 1.5, who=who, whom=other, for_s=3.0)
        for number in range(4):
            plan.add("glance", at=at + 1.8 + 0.5 * number, who=who, what=key)
            plan.add("key", at=at + 2.0 + 0.5 * number, who=who, what=f"get {key}")


def _compaction(plan: _Plan) -> None:
    for _ in plan.some(1, 4):
        plan.add("compact", who=plan.registry(), count=plan.rng.choice((1, 5, 20)))


def _deaf(plan: _Plan) -> None:
    for _ in plan.some(1, 2):
        plan.add("deafen", who=plan.one_of("watcher", plan.watchers), for_s=plan.rng.choice((1.0, 3.0)))


_WORK: Final[dict[str, Callable[[_Plan], None]]] = {
    "traffic": _traffic,
    "bad applications": _bad_applications,
    "keys": _keys,
    "storms": _storms,
    "locks": _locks,
    "fair locks": _fair,
    "sessions": _sessions,
    "elections": _elections,
    "deploys": _deploys,
    "churn": _churn,
    "fleet": _fleet,
}
_FAULTS: Final[dict[str, Callable[[_Plan], None]]] = {
    "crash": _crash,
    "power cuts": _power,
    "pauses": _pauses,
    "partitions": _partitions,
    "one-way partitions": _one_way,
    "cuts": _cuts,
    "tears": _tears,
    "slow links": _slow_links,
    "stalled connections": _stalls,
    "full disks": _disk("full"),
    "broken disks": _disk("write", "sync", "read"),
    "slow disks": _disk("slow"),
    "etcd away": _etcd("away"),
    "etcd silent": _etcd("lose"),
    "etcd compacts": _etcd("compact"),
    "stale replicas": _stale,
    "compaction": _compaction,
    "deaf watchers": _deaf,
}
