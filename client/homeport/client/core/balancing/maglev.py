"""Maglev with bounded load: requests with the same key go to the same endpoint, as long as that is not overrun.

Every endpoint has its own order in which it would like the slots of a table of prime size; they take turns in claiming
the next free one, the heavier more often, until the table is full. A pick is a hash and a list access, everyone who
knows the same endpoints builds the same table, and an endpoint that leaves disturbs few keys of the others (Eisenbud
and others, "Maglev", 2016).

Load is bounded (Mirrokni and others, "Consistent Hashing with Bounded Loads", 2017): nobody has more than `BOUND` times
its fair share of the requests under way, rounded up; the next slots of the table take over. Suspects are passed over in
the same way while anyone else has room.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b
from math import ceil
from typing import Final, Protocol, TypeVar

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing.candidates import Candidates, Load

TABLE_SIZE: Final = 16_381  # a prime; shares are even to 1 % up to 160 endpoints, and the table is built in some 10 ms
BOUND: Final = 1.25  # times the fair share: what the paper's users chose


class Named(Load, Protocol):
    """An endpoint with a name by which everyone knows it."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


def hash_of(key: bytes) -> int:
    """64 bits that are the same in every process; Python's own `hash` is not."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


class Maglev(Candidates[N]):
    """A choice by key. A pick without a key, or with more excluded than a table can tell, is a random one."""

    __slots__ = ("_sum", "table")

    def __init__(self, endpoints: Iterable[N] = ()) -> None:
        super().__init__(sorted(endpoints, key=lambda endpoint: endpoint.name))
        self._sum = sum(member.weight for member in self.members)
        self.table: list[N] = _build(self.members)

    def pick(self, rng: Rng, excluded: Collection[N] = (), now: float = 0.0, key: bytes | None = None) -> N | None:
        members = self.members
        if len(members) < 2:
            return None if not members or members[0] in excluded else members[0]
        at = hash_of(key) % TABLE_SIZE if key is not None else int(rng.random() * TABLE_SIZE)
        first = self.table[at]
        if not first.active and not first.suspect and first not in excluded:
            return first
        spread = BOUND * (1 + sum(member.active for member in members))
        fallback: N | None = None
        for endpoint in self._from(at):
            if endpoint in excluded or endpoint.active >= ceil(self._share(endpoint) * spread):
                continue
            if not endpoint.suspect:
                return endpoint
            fallback = fallback or endpoint
        if fallback is None and excluded:  # who is left has more than its share; it is still better than an error
            others = [member for member in members if member not in excluded]
            return min(others, key=lambda member: member.active / (member.weight or 1)) if others else None
        return fallback

    def _share(self, endpoint: N) -> float:
        return endpoint.weight / self._sum if self._sum else 1 / len(self.members)

    def _from(self, at: int) -> Iterator[N]:
        """Every member once, in the order in which the table names them from here on."""
        seen: set[int] = set()
        for slot in range(TABLE_SIZE):
            endpoint = self.table[at + slot - TABLE_SIZE]  # negative indices wrap around
            if id(endpoint) not in seen:
                seen.add(id(endpoint))
                yield endpoint
                if len(seen) == len(self.members):
                    return


def _build(members: tuple[N, ...]) -> list[N]:
    table: list[N | None] = [None] * TABLE_SIZE
    heaviest = max((member.weight for member in members), default=0.0) or 1.0
    rows = []
    for member in members:
        number = hash_of(member.name.encode())
        rows.append([number % TABLE_SIZE, (number >> 32) % (TABLE_SIZE - 1) + 1])
    claims = [0.0] * len(members)
    free = TABLE_SIZE if members else 0
    while free:
        for index, member in enumerate(members):
            claims[index] += (member.weight or heaviest) / heaviest  # the heaviest claims one slot a turn
            if claims[index] < 1.0:
                continue
            claims[index] -= 1.0
            slot, skip = rows[index]
            while table[slot] is not None:
                slot = (slot + skip) % TABLE_SIZE
            table[slot] = member
            rows[index][0] = slot
            free -= 1
            if not free:
                break
    return [endpoint for endpoint in table if endpoint is not None]
