"""Endpoints as policies see them, and what a fair choice among them would look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from homeport.client.core.balancing import Latency
from homeport.client.core.model import Instance

SEED = 20_260_101


class Host:
    """An endpoint of a service."""

    def __init__(
        self, weight: float = 1, active: int = 0, *, suspect: bool = False, name: str = "", **fields: Any
    ) -> None:
        self.weight = weight
        self.active = active
        self.suspect = suspect
        self.name = name
        self.latency: Latency | None = None
        self.ejected = False
        self.instance = Instance(service="a", id=name, weight=int(weight), **fields)

    @property
    def available(self) -> bool:
        return self.instance.available

    def __repr__(self) -> str:
        return self.name


def named(count: int, weight: float = 1) -> list[Host]:
    return [Host(weight, name=f"n{number}/orders-{number}") for number in range(count)]


def counts(pick: Callable[[], Host | None], hosts: Sequence[Host], times: int) -> list[int]:
    """How often each host was picked."""
    picks = Counter(id(pick()) for _ in range(times))
    return [picks[id(host)] for host in hosts]


def chi_squared_max(freedom: int) -> float:
    """The 99.9 % point of chi-squared, by Wilson and Hilferty's approximation; within 3 % from one degree on."""
    return float(freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3)


def is_fair(found: Sequence[int], shares: Sequence[float]) -> bool:
    """Whether counts could well come from these shares (chi-squared, 99.9 %)."""
    total, whole = sum(found), sum(shares)
    expected = [total * share / whole for share in shares]
    distance = sum((count - wanted) ** 2 / wanted for count, wanted in zip(found, expected, strict=True))
    return distance < chi_squared_max(len(found) - 1)
