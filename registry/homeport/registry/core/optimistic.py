"""Deciding transactions on a mirror of a store that others write to as well.

A transaction is decided here exactly as at an embedded store's head, and what it relied on is remembered: the revision
of every key it looked at, or that it looked at whole ranges. The shared store then carries out the changes only if all
of that still holds; if not, the transaction is decided anew on a newer mirror. Several transactions go together as one
as long as none depends on another of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from homeport.client.core.errors import RequestError
from homeport.client.core.model import KeyValue
from homeport.registry.core.head import Head, Outcome
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change, DeleteResult, PutResult, RangeResult, Txn, TxnResult, matches

Response = RangeResult | PutResult | DeleteResult | TxnResult


class WatchedHead(Head):
    """A head that notes what transactions look at, and which of them can go together as one.

    All that write carry one revision. So none may look at what an earlier one wrote; and what an earlier one looked at
    that writes itself, none may write: its answer names that revision, and who goes on from there would miss the step.
    """

    __slots__ = (
        "_looked",
        "_looked_at_writes",
        "_ranges_looked",
        "_relied",
        "_relied_ranges",
        "keys_seen",
        "saw_ranges",
    )

    def __init__(self, mvcc: Mvcc) -> None:
        super().__init__(mvcc)
        self.keys_seen: dict[bytes, int] = {}  # by those that were taken, with their mod revisions; 0: absent
        self.saw_ranges = False  # one that was taken did
        self._relied: dict[bytes, None] = {}  # keys that those looked at which were taken and write
        self._relied_ranges: list[tuple[bytes, bytes]] = []
        self._looked: dict[bytes, int] = {}  # the same of the one that was decided last
        self._ranges_looked: list[tuple[bytes, bytes]] = []
        self._looked_at_writes = False

    def decide_alone(self, txn: Txn, ops_max: int) -> Outcome | None:
        """Decide one more transaction; None if it depends on those before it, or they on it: it must wait.

        Nothing can be decided after one that must wait, or that is not taken (`take`).

        Raises:
            RequestError: as `Head.decide`; it concerns this transaction alone.
        """
        self._looked, self._ranges_looked, self._looked_at_writes = {}, [], False
        try:
            outcome = self.decide(txn, ops_max)
        except RequestError:
            if self._looked_at_writes:
                return None  # what it was refused for may be otherwise by then
            raise
        if self._looked_at_writes or any(self._relies_on(change.key) for change in outcome.changes):
            return None
        return outcome

    def take(self, outcome: Outcome) -> None:
        """The transaction decided last goes with those before it."""
        self.keys_seen |= self._looked
        self.saw_ranges = self.saw_ranges or bool(self._ranges_looked)
        if outcome.changes:
            self._relied |= dict.fromkeys(self._looked)
            self._relied_ranges += self._ranges_looked

    def _relies_on(self, key: bytes) -> bool:
        return key in self._relied or any(matches(key, start, end) for start, end in self._relied_ranges)

    def claim(self, key: bytes) -> None:
        """A transaction writes this key as well: others that look at it must wait."""
        self._pending[key] = (self.revision, self._mvcc.get(key))

    def get(self, key: bytes) -> KeyValue | None:
        if key in self._pending:
            self._looked_at_writes = True
            return self._pending[key][1]
        kv = self._mvcc.get(key)
        self._looked[key] = kv.mod_revision if kv is not None else 0
        return kv

    def range(self, start: bytes, end: bytes | None) -> Iterator[KeyValue]:
        if end is not None:
            self._ranges_looked.append((start, end))
            if any(matches(key, start, end) for key in self._pending):
                self._looked_at_writes = True
        return super().range(start, end)

    def keys_on(self, lease: int) -> list[bytes]:
        if any(kv is not None and kv.lease == lease for _, kv in self._pending.values()):
            self._looked_at_writes = True
        found = super().keys_on(lease)
        for key in found:
            self.get(key)
        return found


def stamped(result: TxnResult, revision: int) -> TxnResult:
    """The result with the revision that the transaction got in place of the one it was decided with."""
    guess = result.revision
    return TxnResult(revision, result.succeeded, tuple([_stamped(one, guess, revision) for one in result.responses]))


def _stamped(response: Response, guess: int, revision: int) -> Response:
    match response:
        case RangeResult(entries=entries, count=count, more=more):
            return RangeResult(tuple([_at_revision(kv, guess, revision) for kv in entries]), count, more)
        case TxnResult(succeeded=succeeded, responses=responses):
            return TxnResult(0, succeeded, tuple([_stamped(one, guess, revision) for one in responses]))
        case _:
            return response


def _at_revision(kv: KeyValue, guess: int, revision: int) -> KeyValue:
    """The key with the revision that it got in place of the guessed one."""
    if kv.mod_revision != guess:
        return kv
    created = revision if kv.create_revision == guess else kv.create_revision
    return KeyValue(kv.key, kv.value, created, revision, kv.version, kv.lease)


def written(changes: tuple[Change, ...]) -> int:
    """Roughly the bytes that these changes take on their way."""
    return sum(len(change.key) + (len(change.kv.value) if change.kv is not None else 0) for change in changes)


def rendezvous(name: bytes, members: list[str]) -> str:
    """Which member a name falls to: the same for all who know the same members, and few move when one comes or goes."""
    return max(members, key=lambda member: (blake2b(name + b"\0" + member.encode(), digest_size=8).digest(), member))
