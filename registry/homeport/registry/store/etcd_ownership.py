"""Which replicas live, and which of them runs the clock of which lease.

A replica lives under a name that hangs on the one lease of etcd, and under another whenever it has to join anew: so
nothing that it owned before is still its own when others may have taken it over.

`l/<lease>` names the owner. Renewals that the owner hears write nothing. One that another replica hears takes the lease
over, and is answered when that is written. When a replica is gone, the others share its leases by rendezvous hashing,
each with its full TTL. etcd lets go of a name `MEMBER_TTL_S` after it last heard of it at the earliest; an owner
promises nothing any more half that time after it last asked, and so never while another may have taken over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from math import inf
from typing import Final, Protocol

import msgspec

from homeport.client.core import wire
from homeport.client.core.backoff import Rng
from homeport.client.core.errors import Busy, HomeportError, LimitExceeded, ReadOnly
from homeport.client.core.model import KeyValue
from homeport.registry.core import keys
from homeport.registry.core.limits import LEASES_MAX, TXN_OPS_MAX
from homeport.registry.core.mass_expiry import WINDOW_S
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.optimistic import rendezvous
from homeport.registry.core.txn import Change, Compare, EndLease, Put, Txn, TxnResult
from homeport.registry.store.answers import fail
from homeport.registry.store.contract import LeaseRecord
from homeport.registry.store.etcd_batches import TRIES_MAX, Ended, Layout
from homeport.registry.store.etcd_cluster import EtcdCluster, Refused, Unreachable, Write
from homeport.registry.store.lease_clock import LeaseClock
from homeport.registry.trouble import Trouble
from homeport.registry.turns import InTurns

_log = logging.getLogger("homeport.registry.store")

MEMBER_TTL_S: Final = 10  # a replica that says nothing for so long is dead to the others
PROMISE_S: Final = MEMBER_TTL_S / 2  # half for the owner's promise, half for all that clocks and pauses may be off
_STAY_S: Final = 1.25  # between two words to etcd: one call that is not answered, and another, fit into the promise
_RETRY_S: Final = 0.2  # after one that failed
# Adoptions, and take-overs, under way at once: some 100 ms of the loop; many more would hold up the word to etcd.
_ADOPTIONS_MAX: Final = 2000
_CONSIDERED_AT_ONCE: Final = 1000  # leases of a dead replica, in one turn of the loop: some 5 ms with five replicas
_SWEEP_S: Final = 1.0  # between two looks for leases whose owner is gone


class Deciding(Protocol):
    """What is needed of the store."""

    @property
    def mvcc(self) -> Mvcc: ...
    @property
    def read_only(self) -> str | None: ...
    @property
    def reached(self) -> int: ...
    def commit(self, txn: Txn, *, ops_max: int = TXN_OPS_MAX) -> asyncio.Future[TxnResult]: ...
    def end_due(self, lease: int, txn: Txn) -> asyncio.Future[TxnResult]: ...
    def bears_instance(self, lease: int) -> bool: ...
    def expect_history(self, revision: int, reached: int) -> None: ...


class Ownership:
    """The replicas and the owners of leases, as the mirror shows them; told of what changes there.

    Args:
        name: this process's, that no other has.
        host: this machine's, if replicas on other machines are to be told from those on this one.
        lost: told when nothing may be promised any more, and why.
    """

    def __init__(
        self,
        store: Deciding,
        cluster: EtcdCluster,
        layout: Layout,
        *,
        name: str,
        host: str,
        now: Callable[[], float],
        rng: Rng,
        lost: Callable[[str], None],
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._layout = layout
        self._name = name
        self._host = host
        self._now = now
        self._rng = rng
        self._lost = lost
        self._saying_so = Trouble(_log, "etcd is not told that this replica lives")
        self.replica = ""  # what this one is called as long as its membership lasts
        self._joined = 0
        self._membership = 0  # our etcd lease
        self._promised_until = -inf
        self._members: dict[str, str] = {}  # with their machines
        self._owners: dict[int, str] = {}  # of every lease that stands
        self._owned: dict[str, dict[int, None]] = {}  # and back
        self._alive: list[str] = []  # the members when orphans were last looked for
        self._looking = InTurns(self._consider, _CONSIDERED_AT_ONCE)
        self._orphaned: deque[int] = deque()  # that fall to this one, and wait for their turn
        self._taking: dict[int, asyncio.Task[float]] = {}  # take-overs under way, because a renewal was heard
        self._take_overs = asyncio.Semaphore(_ADOPTIONS_MAX)
        self._adopting: dict[int, None] = {}  # and because the owner is gone
        self._ending: dict[int, bool] = {}  # their ends are on their way; whether they bear an instance
        self._instances_ending = 0  # how many do
        self._more_due: dict[bytes, tuple[int, int]] = {}  # that others have yet to end; at which revision they said so
        self._told: deque[tuple[float, int]] = deque()  # revisions that ended leases in the last second, and when
        self._apart = 0  # the newest revision that did so before
        self._charges: list[Callable[[], None]] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.clock = LeaseClock(
            now=now,
            standing=self._standing,
            end=self._end,
            bears=store.bears_instance,
            writable=lambda: store.read_only is None,
            tells=False,
        )

    # --- the replicas -------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Live, under a name that was never used."""
        asked = self._now()
        membership = await self._cluster.grant(MEMBER_TTL_S)
        self._joined += 1
        replica = f"{self._name}.{self._joined}"
        key = self._layout.members + replica.encode()
        reached = self._store.reached
        answer = await self._cluster.txn([], [Write(key, self._host.encode(), membership)], key)
        self._store.expect_history(answer.revision, reached)
        self._membership = membership
        self.replica = replica
        self._members[replica] = self._host
        self._heard(asked)

    def start(self, members: dict[str, str], revision: int) -> None:
        """Look after what the mirror holds now, at that revision of etcd's; `join` came before."""
        self._apart = revision
        self._loop = asyncio.get_running_loop()
        self._members |= members
        for kv in map(self._store.mvcc.get, self._store.mvcc.keys(keys.LEASES, keys.prefix_end(keys.LEASES))):
            assert kv is not None
            self._set_owner(keys.lease_number(kv.key), wire.decode(LeaseRecord, kv.value).owner)
        self.clock.start()
        self._watch_promise()
        self._sweep()

    def stop(self) -> None:
        self._loop = None
        self._promised_until = -inf
        self.clock.stop()
        self._looking.stop()
        for timer in self._timers.values():
            timer.cancel()
        for task in self._taking.values():
            task.cancel()

    async def leave(self) -> None:
        """Say goodbye, so that the others take over at once."""
        try:
            await self._cluster.revoke(self._membership)
        except HomeportError as error:
            _log.info("the replicas are left without a word: %s", error)

    async def stay(self) -> None:
        """Keep the membership alive, for ever."""
        told = True
        while True:
            await asyncio.sleep(_STAY_S if told else _RETRY_S)
            told = await self._say_so()

    async def _say_so(self) -> bool:
        asked = self._now()
        try:
            if await self._cluster.keep_alive(self._membership):
                self._saying_so.over()
                self._heard(asked)
                return True
            # etcd has let go of us: others take over what was ours, and do so under our eyes.
            await self.join()
        except (Unreachable, Refused) as error:
            self._saying_so.met(error)
            return False
        self._saying_so.over()
        self.clock.clear()
        self.members_changed()
        return True

    @property
    def promising(self) -> bool:
        """Whether nobody can have taken over what is owned here."""
        return self._now() < self._promised_until

    def _heard(self, asked: float) -> None:
        self._promised_until = max(self._promised_until, asked + PROMISE_S)

    def _watch_promise(self) -> None:
        assert self._loop is not None
        left_s = self._promised_until - self._now()
        if left_s <= 0.0:
            self._lost("no etcd quorum answers")
        self._timers["promise"] = self._loop.call_later(left_s if left_s > 0.0 else _RETRY_S, self._watch_promise)

    def member_seen(self, member: str, host: str | None) -> bool:
        """The mirror shows a replica on that machine, or (None) that it is gone; return whether that was not known."""
        new = self._members.get(member) != host
        if host is None:
            self._members.pop(member, None)
        else:
            self._members[member] = host
        return new

    def read_anew(self, members: dict[str, str], revision: int) -> None:
        """The mirror has leapt to that revision of etcd's."""
        self._apart = revision
        self._members = dict(members)
        self.members_changed()

    def members_changed(self) -> None:
        self._look_for_orphans()
        for listener in self._charges:
            listener()

    def in_charge(self, name: bytes, lease: int, local: bool, host: str) -> bool:
        able = [member for member, at in self._members.items() if not host or at == host]
        owner = self._owners.get(lease, "") if local else ""
        if owner in able:
            return owner == self.replica
        return self.replica in able and rendezvous(name, able) == self.replica

    def listen_charges(self, listener: Callable[[], None]) -> None:
        self._charges.append(listener)

    # --- leases -------------------------------------------------------------------------------------------------

    def new_lease(self) -> int:
        if len(self._owners) >= LEASES_MAX:
            raise LimitExceeded(f"there are {LEASES_MAX} leases already", limit="LEASES_MAX", allowed=LEASES_MAX)
        while True:
            lease = self._rng.randrange((1 << 63) - 1) + 1
            if lease not in self._owners:
                return lease

    def leases(self) -> list[int]:
        return list(self._owners)

    def remaining_s(self, lease: int) -> float | None:
        if lease in self.clock:
            return self.clock.remaining_s(lease)
        record = self._store.mvcc.get(keys.lease(lease))  # another's clock: it has this much at the most
        return None if record is None else wire.decode(LeaseRecord, record.value).ttl_s

    def renew(self, lease: int) -> float | asyncio.Future[float]:
        """As the store's `lease_renew`."""
        assert self._loop is not None
        owner = self._owners.get(lease)
        if owner is None:
            return 0.0
        own = owner == self.replica
        # What was heard counts here, even if it cannot be promised: nothing is taken for silent that is not.
        ttl_s = self.clock.renew(lease) if own else 0.0
        if not self.promising:
            refused: asyncio.Future[float] = self._loop.create_future()
            fail(refused, ReadOnly("etcd does not answer: another replica may own the lease, and end it"))
            return refused
        if own:
            return ttl_s
        taking = self._taking.get(lease)
        if taking is None:
            taking = self._taking[lease] = self._loop.create_task(self._take_over(lease), name="homeport take-over")
            taking.add_done_callback(lambda done: self._taken(lease, done))
        return asyncio.shield(taking)

    def _taken(self, lease: int, done: asyncio.Task[float]) -> None:
        self._taking.pop(lease, None)
        if not done.cancelled():
            done.exception()  # all who asked may have given up by now; then nobody need be warned

    async def _take_over(self, lease: int) -> float:
        """Run the clock of a lease that another replica owned; return its TTL once that is written, 0.0 if it is gone.

        Raises:
            ReadOnly: nothing can be written.
            OutcomeUnknown: nobody knows whether it was.
            Busy: its record changes all the time.
        """
        async with self._take_overs:
            for _ in range(TRIES_MAX):
                record = self._store.mvcc.get(keys.lease(lease))
                if record is None:
                    return 0.0
                found = wire.decode(LeaseRecord, record.value)
                if found.owner == self.replica:  # adopted meanwhile
                    return self.clock.renew(lease)
                if (await self._store.commit(self._mine(record, found))).succeeded:
                    return found.ttl_s
        raise Busy(f"the record of the lease has changed {TRIES_MAX} times", retry_after_s=_RETRY_S)

    def _mine(self, record: KeyValue, found: LeaseRecord) -> Txn:
        mine = wire.encode(msgspec.structs.replace(found, owner=self.replica))
        return Txn((Compare(record.key, "mod", "=", record.mod_revision),), (Put(record.key, mine),))

    def changed(self, change: Change) -> None:
        """The mirror shows another record of a lease: its clock starts or stops here."""
        lease = keys.lease_number(change.key)
        if change.kv is None:
            self._set_owner(lease, None)
            self.clock.ended(lease)
            return
        record = wire.decode(LeaseRecord, change.kv.value)
        before = wire.decode(LeaseRecord, change.prev.value) if change.prev is not None else LeaseRecord(0.0)
        self._set_owner(lease, record.owner)
        if record.owner != self.replica:
            self.clock.handed_over(lease)
        elif before.owner != self.replica or record.attached <= before.attached or lease not in self.clock:
            # Who owned it may be cut off from etcd and not know yet; what it answers until then is to hold.
            unaware = before.owner not in ("", self.replica) and before.owner in self._members
            self.clock.granted(lease, record.ttl_s, PROMISE_S if unaware else 0.0)
        # Else a key was put on it, and its clock goes on.

    def _standing(self, lease: int) -> KeyValue | None:
        return self._store.mvcc.get(keys.lease(lease)) if self._owners.get(lease) == self.replica else None

    def _end(self, lease: int, record: KeyValue) -> None:
        txn = Txn((Compare(record.key, "mod", "=", record.mod_revision),), (EndLease(lease),))
        ended = self._store.end_due(lease, txn)
        self._ending[lease] = self.clock.bears(lease)
        self._instances_ending += self._ending[lease]
        ended.add_done_callback(lambda _done: self._not_ended(lease))

    def ending(self, leases: Sequence[int]) -> Ended:
        """What all replicas are told of the ends of these leases, which were due here."""
        more = self._instances_ending - sum(self._ending.get(lease, False) for lease in leases)
        return Ended(tuple(leases), more + self.clock.waiting, self._since())

    def _since(self) -> int:
        """etcd's revision after which all ends came within the last second, as far as can be known here."""
        now = self._now()
        while self._told and (now - self._told[0][0] >= WINDOW_S or self._told[0][1] <= self._apart):
            self._apart = max(self._apart, self._told.popleft()[1])
        return self._apart

    def ended(self, by: bytes, ended: Ended, revision: int) -> None:
        """The mirror is about to show that a process, maybe this one, has ended leases that were due.

        So every replica counts all ends, in the same order, and takes for one burst what that process does: a mirror
        that stood still hears in one moment of ends that were far apart.
        """
        since = ended.since if ended.since >= 0 else self._since()
        self._apart = max(self._apart, since)
        self._told.append((self._now(), revision))
        self._more_due[by] = (revision, ended.more)
        self._more_due = {one: said for one, said in self._more_due.items() if said[0] > since}
        more = sum(more for _, more in self._more_due.values())
        self.clock.tell_ending(ended.leases, more, revision, since)

    def _not_ended(self, lease: int) -> None:
        """If a key was put on it at the last moment, it is due again; if it is gone there is nothing to do."""
        self._instances_ending -= self._ending.pop(lease, False)
        if lease in self._owners and lease in self.clock:
            self.clock.resume(lease)

    def _sweep(self) -> None:
        assert self._loop is not None
        if not (self._orphaned or self._adopting or self._looking.under_way):
            self._look_for_orphans()  # whatever failed is tried again
        self._timers["sweep"] = self._loop.call_later(_SWEEP_S, self._sweep)

    def _look_for_orphans(self) -> None:
        """Find those leases of dead replicas that fall to this one, and take them over."""
        self._looking.stop()
        self._orphaned.clear()
        if self._store.read_only is not None or self._loop is None or self.replica not in self._members:
            return
        self._alive = list(self._members)
        dead = [owner for owner in self._owned if owner not in self._members]
        if dead:
            self._looking.begin(chain.from_iterable([tuple(self._owned[owner]) for owner in dead]))

    def _consider(self, lease: int) -> None:
        """An orphan: does it fall to this replica?"""
        if lease not in self._adopting and rendezvous(keys.lease(lease), self._alive) == self.replica:
            self._orphaned.append(lease)
            self._adopt()

    def _adopt(self) -> None:
        """Have the next orphans written down as this replica's, as many at once as may be."""
        while self._orphaned and len(self._adopting) < _ADOPTIONS_MAX:
            if self._store.read_only is not None or self._loop is None:
                self._orphaned.clear()
                return
            lease = self._orphaned.popleft()
            record = self._store.mvcc.get(keys.lease(lease))
            if record is None or self._owners[lease] in self._members:
                continue  # it ended, or was renewed elsewhere meanwhile
            self._adopting[lease] = None
            adopted = self._store.commit(self._mine(record, wire.decode(LeaseRecord, record.value)))
            adopted.add_done_callback(lambda _done, lease=lease: self._adopted(lease))  # type: ignore[misc]  # mypy cannot infer a lambda's default

    def _adopted(self, lease: int) -> None:
        """Adopted, or not any more an orphan; whatever failed is tried again by a later sweep."""
        self._adopting.pop(lease, None)
        self._adopt()

    def _set_owner(self, lease: int, owner: str | None) -> None:
        """The mirror says whose a lease is; None: it is gone."""
        before = self._owners.get(lease)
        if before == owner:
            return
        if before is not None:
            del self._owners[lease]
            owned = self._owned[before]
            del owned[lease]
            if not owned:
                del self._owned[before]
        if owner is not None:
            self._owners[lease] = owner
            self._owned.setdefault(owner, {})[lease] = None

    def numbers(self) -> dict[str, int]:
        return {
            "leases": len(self._owners),
            "leases_owned": len(self.clock),
            "replicas": len(self._members),
        }
