"""A scenario: what happens in one run, as plain data, so that it can be written down, cut shorter and run again.

A run is decided by its scenario alone; `generate.py` makes one from a seed, `shrink.py` leaves steps out of it, and a
regression test keeps it as JSON. The seed stays in it, for latencies and whatever else is drawn while it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

StoreKind = Literal["memory", "journal", "etcd"]


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happens; which fields mean something is up to its kind (`actions.py`, `faults.py`).

    Attributes:
        at: virtual seconds after everything has started.
        who, whom: parties of the run by name.
        for_s: how long it lasts.
        what: a key, a manner of answering, a kind of failure.
        count: how many, or how many bytes.
    """

    at: float
    kind: str
    who: str = ""
    whom: str = ""
    what: str = ""
    for_s: float = 0.0
    count: int = 0

    def __str__(self) -> str:
        words = [self.kind, self.who, self.whom, self.what]
        if self.count:
            words.append(f"x{self.count}")
        if self.for_s:
            words.append(f"for {self.for_s:g} s")
        return " ".join(word for word in words if word)


class Scenario(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who is there, and what happens.

    Attributes:
        features: the switches that were on when it was generated, for people.
        instances: how many of each service there are at the start.
        callers, writers, watchers, lockers, fleet: how many parties of each kind; `fleet` counts instances that one
            client registers.
        length_s: when faults end and everything has to come right.
    """

    seed: int
    store: StoreKind
    registries: int = 1
    features: tuple[str, ...] = ()
    instances: dict[str, int] = {}
    callers: int = 0
    writers: int = 0
    watchers: int = 0
    lockers: int = 0
    fleet: int = 0
    length_s: float = 20.0
    steps: tuple[Step, ...] = ()


def load(path: Path) -> Scenario:
    """Read a scenario that `save` wrote.

    Raises:
        msgspec.ValidationError: the file holds none.
    """
    return msgspec.json.decode(path.read_bytes(), type=Scenario)


def save(path: Path, scenario: Scenario) -> None:
    """Write a scenario as JSON that people can read."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(scenario), indent=1) + b"\n")
