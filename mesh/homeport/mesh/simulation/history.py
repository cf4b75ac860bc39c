"""What the stores of a run have shown to anyone, and whether every replica, restart and watch agrees with it.

A listener in each store tells every revision that becomes durable there. The first to tell a revision sets what it is;
whoever tells it later must tell the same, in order and without a gap. A store that starts must still have all of it.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence

from homeport.client.core.model import KeyValue
from homeport.mesh.simulation import guarantees
from homeport.mesh.simulation.trace import Trace
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Change, Range

Step = dict[bytes, KeyValue | None]  # one revision's changes; None is a deletion


class History:
    """One history of revisions: that of one `store_id`."""

    def __init__(self, store_id: str) -> None:
        self.store_id = store_id
        self.steps: dict[int, Step] = {}
        self.first_seen: dict[int, float] = {}
        self.order: list[int] = []  # the revisions in `steps`, ascending
        self.state: dict[bytes, KeyValue] = {}
        self.newest = 0  # shown to anyone
        self.acknowledged = 0  # the newest revision that a client was told of
        self.compacted = 0  # the newest revision that some replica cannot show any more
        self.began = False
        self.leaps: list[tuple[int, int]] = []  # revisions that a replica took in as one, maybe before others told them

    def touching(self, prefix: bytes, after: int, to: int) -> list[int]:
        """The revisions after one and up to another that changed something under a prefix."""
        at = bisect_right(self.order, after)
        found: list[int] = []
        while at < len(self.order) and self.order[at] <= to:
            if any(key.startswith(prefix) for key in self.steps[self.order[at]]):
                found.append(self.order[at])
            at += 1
        return found

    def begin(self, mvcc: Mvcc) -> None:
        """What the first store that is seen of this history holds."""
        self.began = True
        self.newest = mvcc.revision
        self.state = {kv.key: kv for kv in mvcc.range(Range(b"", b"")).entries}
        self.compacted = mvcc.revision

    def leap(self, before: int, revision: int, step: Step) -> bool:
        """A replica came to a revision without seeing those after `before`; return whether it is the first there."""
        self.compacted = max(self.compacted, revision)
        self.leaps.append((before, revision))
        if revision <= self.newest:
            return False
        self.newest = revision
        self._take(step)
        return True

    def leapt(self, revision: int) -> bool:
        """Whether a replica took this revision in as a part of a later one."""
        return any(before < revision <= to for before, to in self.leaps)

    def fill(self, revision: int, step: Step, now: float) -> None:
        """A revision that a leap went over, if there was such a leap, is told after all."""
        if self.leapt(revision):
            self.steps[revision] = step
            self.first_seen[revision] = now
            insort(self.order, revision)

    def was_absent(self, key: bytes, since: int) -> bool:
        """Whether a key may have been absent at a time after the revision that wrote it."""
        return bool(self.leaps) or any(
            self.steps[one].get(key, True) is None for one in self.touching(key, since, self.newest)
        )

    def add(self, revision: int, step: Step, now: float) -> None:
        self.steps[revision] = step
        self.first_seen[revision] = now
        self.order.append(revision)
        self.newest = revision
        self._take(step)

    def _take(self, step: Step) -> None:
        for key, kv in step.items():
            if kv is None:
                self.state.pop(key, None)
            else:
                self.state[key] = kv


class Teller:
    """One process's store, as far as it has told its history."""

    def __init__(self, party: str) -> None:
        self.party = party
        self.at = 0
        self.history: History | None = None
        self.resyncs = 0


class Histories:
    """All histories of a run."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.of: dict[str, History] = {}

    def get(self, store_id: str) -> History:
        if store_id not in self.of:
            self.of[store_id] = History(store_id)
        return self.of[store_id]

    def promised(self) -> dict[str, int]:
        """By history, up to which revision anything was shown or acknowledged to anyone."""
        return {store_id: max(one.newest, one.acknowledged) for store_id, one in self.of.items()}

    def started(self, teller: Teller, store_id: str, mvcc: Mvcc, promises: dict[str, int], now: float) -> None:
        """A store has started with this in it: everything that was promised before it did must be there."""
        history = teller.history = self.get(store_id)
        teller.at = mvcc.revision
        if not history.began:
            history.begin(mvcc)
            return
        promised = promises.get(store_id, 0)
        if mvcc.revision < promised:
            self._trace.broken(
                guarantees.KEPT,
                f"{teller.party} starts at revision {mvcc.revision}, but {promised} was shown or acknowledged",
            )
            return
        history.compacted = max(history.compacted, mvcc.compact_revision)
        if history.newest < mvcc.compact_revision:
            self._starts_ahead(teller.party, history, mvcc)
        elif mvcc.revision >= history.newest:
            entries = mvcc.range(Range(b"", b"", revision=history.newest)).entries
            self._compare(teller.party, {kv.key: kv for kv in entries}, history)
            for revision, changes in mvcc.changes_from(max(history.newest, mvcc.compact_revision) + 1):
                history.add(revision, {change.key: change.kv for change in changes}, now)

    def _starts_ahead(self, party: str, history: History, mvcc: Mvcc) -> None:
        """A store has read what nobody has told: what a process wrote before it died. What is older is as it was."""
        found = {kv.key: kv for kv in mvcc.range(Range(b"", b"")).entries}
        for key, kv in found.items():
            if kv.mod_revision <= history.newest and history.state.get(key) != kv:
                self._trace.broken(
                    guarantees.KEPT,
                    f"{party} at revision {mvcc.revision}: {key!r} is {kv}, and was {history.state.get(key)}"
                    f" at {history.newest}",
                )
        history.leap(history.newest, mvcc.revision, {key: found.get(key) for key in {**history.state, **found}})

    def _compare(self, party: str, found: dict[bytes, KeyValue], history: History) -> None:
        if found == history.state:
            return
        differing = [
            key for key in sorted(found.keys() | history.state.keys()) if found.get(key) != history.state.get(key)
        ]
        key = differing[0]
        self._trace.broken(
            guarantees.KEPT,
            f"{party} at revision {history.newest}: {key!r} is {found.get(key)}, and was {history.state.get(key)}",
        )

    def told(self, teller: Teller, revision: int, changes: Iterable[Change], resyncs: int, now: float) -> bool:
        """A revision has become durable in a store; return whether it was the first to show it."""
        history = teller.history
        assert history is not None
        step: Step = {change.key: change.kv for change in changes}
        before, teller.at = teller.at, revision
        resynced, teller.resyncs = resyncs != teller.resyncs, resyncs
        if resynced:
            return history.leap(before, revision, step)
        first = revision > history.newest
        if first:
            history.add(revision, step, now)
        elif revision not in history.steps:
            history.fill(revision, step, now)
        if history.steps.get(revision) != step:
            self._trace.broken(
                guarantees.KEPT,
                f"{teller.party} shows revision {revision} as {step}, others as {history.steps.get(revision)}",
            )
        passed = history.touching(b"", before, revision - 1)
        if passed:
            self._trace.broken(
                guarantees.WATCHES,
                f"{teller.party} went from revision {before} to {revision}, past {passed[0]}"
                f" with {sorted(history.steps[passed[0]])}",
            )
        return first

    def acknowledged(self, store_id: str, revision: int, key: bytes, value: bytes | None) -> None:
        """A client was told that its write of a key is durable at a revision."""
        history = self.get(store_id)
        history.acknowledged = max(history.acknowledged, revision)
        step = history.steps.get(revision)
        if step is None:
            if history.began and revision <= history.newest and revision > history.compacted:
                self._trace.broken(guarantees.KEPT, f"a write of {key!r} was acknowledged at {revision}: there is none")
            return
        kv = step.get(key)
        if key not in step or (kv.value if kv is not None else None) != value:
            self._trace.broken(guarantees.KEPT, f"{key!r} = {value!r} was acknowledged at {revision}, where it is {kv}")


class Following:
    """A watch of a prefix, held against the history as it goes."""

    def __init__(self, trace: Trace, histories: Histories, name: str, prefix: bytes) -> None:
        self._trace = trace
        self._histories = histories
        self.name = name
        self.prefix = prefix
        self.store_id = ""
        self.at = 0

    def starts(self, store_id: str, revision: int) -> None:
        """All up to a revision was read; changes after it are to come."""
        self.store_id, self.at = store_id, revision

    def event(self, revision: int, events: Sequence[tuple[bytes, bytes | None]]) -> None:
        """A revision's events arrived."""
        history = self._histories.get(self.store_id)
        if revision <= self.at:
            self._trace.broken(guarantees.WATCHES, f"{self.name} got revision {revision} after {self.at}")
            return
        passed = [one for one in history.touching(self.prefix, self.at, revision) if one != revision]
        if passed:
            self._trace.broken(
                guarantees.WATCHES, f"{self.name} got revision {revision} after {self.at}, without {passed[:5]}"
            )
        step = history.steps.get(revision)
        if step is None:
            if not history.leapt(revision):
                self._trace.broken(guarantees.WATCHES, f"{self.name} got revision {revision}, which no store has shown")
        else:
            mine = {key: kv.value if kv else None for key, kv in step.items() if key.startswith(self.prefix)}
            if dict(events) != mine or len(events) != len(mine):
                self._trace.broken(
                    guarantees.WATCHES, f"{self.name} got {events} at revision {revision}, which is {mine}"
                )
        self.at = revision

    def lost(self, first: int, last: int) -> None:
        """It was told that revisions of this history are lost."""
        history = self._histories.get(self.store_id)
        if first > self.at + 1 and history.touching(self.prefix, self.at, first - 1):
            self._trace.broken(guarantees.WATCHES, f"{self.name} at {self.at} lost {first} to {last}: there is a gap")
        if last > history.compacted:
            self._trace.broken(
                guarantees.WATCHES,
                f"{self.name} lost {first} to {last}, but nothing after {history.compacted} was forgotten",
            )
        self.at = max(self.at, last)

    def missing(self) -> list[int]:
        """What it should have got by now."""
        history = self._histories.get(self.store_id)
        return history.touching(self.prefix, self.at, history.newest)
