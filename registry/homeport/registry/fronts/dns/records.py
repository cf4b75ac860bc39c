"""Records as bytes, and sets of them in an order that is drawn anew for each answer.

A set is made once and kept until what it says changes. Small ones, which most services have, keep every order they can
be in as one piece of bytes, each with the probability that the weights give it; an answer is then one draw and one
concatenation. Larger ones are put together for each answer, and only as much of them as is sent.
"""

from __future__ import annotations

import struct
from bisect import bisect
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, permutations
from typing import Final

from homeport.client.core.backoff import Rng
from homeport.registry.fronts.dns.question import HEADER_BYTES, NAME_BYTES_MAX, OPT_BYTES, UDP_BYTES_PLAIN

A, NS, CNAME, SOA, PTR, TXT, AAAA, SRV, OPT, ANY = 1, 2, 5, 6, 12, 16, 28, 33, 41, 255
PLAIN_RECORDS_MAX: Final = 3  # in a UDP answer without EDNS, as from Consul; the rest comes over TCP
ORDERS_KEPT_OF: Final = 4  # records at most: 24 orders
_OWNER: Final = b"\xc0\x0c"  # the question's own name
_POINTER_MAX: Final = 0x3FFF  # how far into a message a compressed name can point
_TARGET_AT: Final = 18  # where the target of an SRV record begins: after its owner, its ten bytes, and three numbers
_FIXED: Final = struct.Struct(">HHIH")
_COUNTS: Final = struct.Struct(">HHHH")
_STRING_BYTES_MAX: Final = 255
_UNBOUNDED: Final = 1 << 30


def record(kind: int, ttl_s: int, rdata: bytes, owner: bytes = _OWNER) -> bytes:
    """One record; by default of the name that was asked for."""
    return owner + _FIXED.pack(kind, 1, ttl_s, len(rdata)) + rdata


@lru_cache(4096)  # a site asks for few domains and few hosts
def name_wire(text: str) -> bytes | None:
    """A name as bytes, uncompressed; None if it cannot be one."""
    labels = text.rstrip(".").encode().split(b".")
    if not all(0 < len(label) <= 63 for label in labels):
        return None
    wire = b"".join(bytes((len(label),)) + label for label in labels) + b"\x00"
    return wire if len(wire) <= NAME_BYTES_MAX else None


def strings(entries: Sequence[str]) -> bytes:
    """The character strings of a TXT record; an entry that is longer than one can be is left out."""
    encoded = [entry.encode() for entry in entries]
    return b"".join(bytes((len(one),)) + one for one in encoded if len(one) <= _STRING_BYTES_MAX) or b"\x00"


class Member:
    """One record of a set, with its weight and, for SRV, the address of its target."""

    __slots__ = ("glue", "glue_owner", "weight", "wire")

    def __init__(self, wire: bytes, weight: int = 1, glue_owner: bytes = b"", glue: bytes = b"") -> None:
        self.wire = wire
        self.weight = weight
        self.glue_owner = glue_owner  # the target's name, uncompressed
        self.glue = glue  # its record, without the owner


class Body:
    """What follows the question: the records, how many of them answer and how many are added, whether some are cut."""

    __slots__ = ("added", "answers", "truncated", "wire")

    def __init__(self, wire: bytes, answers: int, added: int, truncated: bool) -> None:
        self.wire = wire
        self.answers = answers
        self.added = added
        self.truncated = truncated


class RecordSet:
    """The records that answer one question, which ends `start` bytes into the message.

    Args:
        ra: whether answers say that recursion is available.
    """

    __slots__ = (
        "_bodies",
        "_chances",
        "_members",
        "_one",
        "_orders",
        "_start",
        "count",
        "heads",
        "plain",
        "wire_bytes",
    )

    def __init__(self, members: Sequence[Member], start: int, *, ra: bool = False) -> None:
        unique: dict[bytes, Member] = {}
        for member in members:
            same = unique.setdefault(member.wire, member)
            if same is not member:  # two instances at one address: one record, chosen as often as both
                unique[member.wire] = Member(same.wire, same.weight + member.weight, same.glue_owner, same.glue)
        self._members = tuple(unique.values())
        self._start = start
        self.count = len(self._members)
        self.wire_bytes = 0  # of the whole message, without an OPT record; only of a set that has `heads`
        self.plain = False  # whether it all fits without EDNS over UDP
        self.heads: tuple[bytes, ...] = ()  # by (EDNS, recursion desired): flags and counts of the whole set
        self._bodies: list[bytes | None] = []
        self._orders: list[tuple[int, ...]] = []
        self._chances: list[float] = []
        if len(self._members) <= ORDERS_KEPT_OF:
            self._keep_orders(0x80 if ra else 0)

    def _keep_orders(self, ra: int) -> None:
        self._orders = list(permutations(range(len(self._members))))
        self._bodies = [None] * len(self._orders)
        self._chances = list(accumulate(self._chance(order) for order in self._orders))
        body = self._assemble(self._orders[0], _UNBOUNDED)
        self.wire_bytes = self._start + len(body.wire)
        self.plain = self.count <= PLAIN_RECORDS_MAX and self.wire_bytes <= UDP_BYTES_PLAIN
        self.heads = tuple(
            bytes((0x84 | rd, ra)) + _COUNTS.pack(1, self.count, 0, body.added + edns)
            for edns in (0, 1)
            for rd in (0, 1)
        )

    def whole(self, rng: Rng) -> bytes:
        """All records in one of the orders that are kept; only of a set that has `heads`."""
        at = bisect(self._chances, rng.random() * self._chances[-1]) if len(self._chances) > 1 else 0
        at = min(at, len(self._chances) - 1)  # a draw may round up to the end
        body = self._bodies[at]
        if body is None:
            body = self._bodies[at] = self._assemble(self._orders[at], _UNBOUNDED).wire
        return body

    def draw(self, rng: Rng | None, room: int, records_max: int) -> Body:
        """As many records as fit, in an order drawn by weight; the additions are the first to be left out.

        Args:
            rng: None keeps the order in which they were given.
            room: bytes of the whole message, without an OPT record.
            records_max: how many may answer.
        """
        weights = [member.weight for member in self._members]
        order = range(len(weights)) if rng is None else drawn(weights, rng)
        body = self._assemble(order[: min(self.count, records_max)], room)
        body.truncated = body.truncated or body.answers < self.count
        return body

    def _chance(self, order: Sequence[int]) -> float:
        """How probable an order is, when each next one is drawn by weight among those left; zeros come last."""
        left = [self._members[at].weight for at in order]
        total, chance = sum(left), 1.0
        for weight in left:
            if not total:
                return chance  # only zeros are left: one order of them is as good as another
            chance *= weight / total
            total -= weight
        return chance

    def _assemble(self, order: Sequence[int], room: int) -> Body:
        size = self._start
        parts: list[bytes] = []
        added: dict[bytes, bytes] = {}
        truncated = False
        for at in order:
            member = self._members[at]
            if size + len(member.wire) > room:
                truncated = True
                break
            if member.glue and member.glue_owner not in added:
                target = size + _TARGET_AT
                owner = (0xC000 | target).to_bytes(2, "big") if target <= _POINTER_MAX else member.glue_owner
                added[member.glue_owner] = owner + member.glue
            parts.append(member.wire)
            size += len(member.wire)
        answers = len(parts)
        for extra in added.values() if not truncated else ():
            if size + len(extra) > room:
                break  # the asker can ask for it: no need to say that the answer is cut
            parts.append(extra)
            size += len(extra)
        return Body(b"".join(parts), answers, len(parts) - answers, truncated)


def drawn(weights: Sequence[int], rng: Rng) -> Sequence[int]:
    """Places in an order in which each next one is drawn by weight among those left (Efraimidis and Spirakis, 2006)."""
    if len(weights) == 1:
        return (0,)
    keyed = [(rng.random() ** (1 / weight) if weight else rng.random() - 1, at) for at, weight in enumerate(weights)]
    keyed.sort(reverse=True)
    return [at for _, at in keyed]


def opt(udp_bytes: int, rcode: int = 0) -> bytes:
    """Our OPT record: what we take, and the upper part of the code."""
    return b"\x00" + _FIXED.pack(OPT, udp_bytes, (rcode >> 4) << 24, 0)


def message(id_: bytes, flags: int, question: bytes, counts: tuple[int, int, int], rest: bytes) -> bytes:
    """A whole message; counts of answers, authorities and additions."""
    return id_ + flags.to_bytes(2, "big") + _COUNTS.pack(1 if question else 0, *counts) + question + rest


assert len(opt(0)) == OPT_BYTES
assert 2 + 2 + _COUNTS.size == HEADER_BYTES
