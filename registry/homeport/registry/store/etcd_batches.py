"""What goes to etcd as one: transactions decided on a mirror, as guards and writes; and how a store's keys stand there.

Under a store's prefix, `k` and a key is one of the store's, its value behind a byte that says whether a lease follows.
The store's revisions count from the one that created its name, so they are etcd's less a constant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final
from zlib import crc32

import msgspec

from homeport.client.core import wire
from homeport.client.core.errors import Busy, LimitExceeded, ProtocolError, RequestError
from homeport.client.core.model import Instance, KeyValue
from homeport.registry.core import keys
from homeport.registry.core.head import Outcome
from homeport.registry.core.locality import taken_on
from homeport.registry.core.mvcc import FIRST_REVISION, Mvcc
from homeport.registry.core.optimistic import WatchedHead, stamped, written
from homeport.registry.core.txn import Txn, TxnResult
from homeport.registry.store.answers import fail
from homeport.registry.store.contract import LeaseRecord, Reply
from homeport.registry.store.etcd_cluster import Stored, Write

_FENCES: Final = 256  # two of three replicas share one, and are in each other's way, once in eighty times
_GUARDS_MAX: Final = 100  # of etcd's 128 compares; past it, and in larger transactions, the guard is that nobody wrote
_WRITES_MAX: Final = 100  # of a batch; a single transaction may have more, and is nested
WRITES_OF_ONE_MAX: Final = 3000  # of one transaction: what etcd's limits allow in two levels, with room
_BATCH_BYTES_MAX: Final = 1024 * 1024  # of etcd's 1.5 MiB; one largest value is a batch of its own
TRIES_MAX: Final = 100  # times a transaction is decided anew because other replicas were faster
_BUSY_S: Final = 0.2  # when one that was never fast enough may come back


class Layout:
    """Where a store has what in etcd."""

    __slots__ = ("base", "fences", "id", "keys", "last", "let_go", "members", "migrating", "prefix", "store_id")

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.keys = prefix + b"k"
        self.id = prefix + b"i/id"
        self.last = prefix + b"i/last"
        self.let_go = prefix + b"i/let-go"  # the instance that was let go of last, of those that are only kept
        self.members = prefix + b"i/m/"
        self.fences = prefix + b"i/f/"  # what keeps an attempt that was long on its way from being carried out twice
        self.migrating = prefix + b"i/migrating"  # as long as not everything is there
        self.base = 0  # etcd's revision less ours
        self.store_id = ""

    def named(self, identity: Stored) -> str:
        """Count revisions from the creation of the store's name; return that."""
        self.base = identity.create_revision - FIRST_REVISION
        self.store_id = identity.value.decode()
        return self.store_id

    def fence(self, name: str) -> bytes:
        """The fence of a replica: one of few, so that those of replicas long gone are no burden."""
        return self.fences + b"%d" % (crc32(name.encode()) % _FENCES)

    def names(self, identity: Stored | None) -> bool:
        """Whether that is the name of this very store."""
        return identity is not None and (identity.value, identity.create_revision - FIRST_REVISION) == (
            self.store_id.encode(),
            self.base,
        )

    def decoded(self, stored: Stored) -> KeyValue:
        lease, at = (int.from_bytes(stored.value[1:9], "big"), 9) if stored.value[:1] == b"\1" else (0, 1)
        return KeyValue(
            stored.key.removeprefix(self.keys),
            stored.value[at:],
            stored.create_revision - self.base,
            stored.mod_revision - self.base,
            stored.version,
            lease,
        )

    def write(self, key: bytes, value: bytes | None, lease: int = 0) -> Write:
        """The write of one of the store's keys; a `value` of None deletes it."""
        if value is None:
            return Write(self.keys + key, None)
        head = b"\1" + lease.to_bytes(8, "big") if lease else b"\0"
        return Write(self.keys + key, head + value)

    def guard(self, key: bytes, mod_revision: int) -> tuple[bytes, int]:
        return (self.keys + key, mod_revision + self.base if mod_revision else 0)


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """Leases that a batch ends because their time is up; what else its sender says, all replicas reckon with alike.

    Attributes:
        more: so many more instances' leases are due at the sender.
        since: etcd's revision after which all such batches came within a second, as the sender heard them; -1: a
            release that does not say so.
    """

    leases: tuple[int, ...]
    more: int
    since: int = -1


def stamp(name: bytes, ended: Ended | None) -> bytes:
    """What a batch writes under `i/last`: its name, and what all replicas are to know of it."""
    return name if ended is None else name + b" " + wire.encode(ended)


def read_stamp(value: bytes) -> tuple[bytes, Ended | None]:
    """The same, read; what else another release may write behind the name is its own affair."""
    name, space, rest = value.partition(b" ")
    try:
        return name, wire.decode(Ended, rest) if space else None
    except ProtocolError:
        return name, None


def read_let_go(value: bytes) -> tuple[str, str] | None:
    """The node and id of the instance that was let go of; None: another release says it otherwise."""
    try:
        return wire.decode(tuple[str, str], value)
    except ProtocolError:
        return None


class Waiting:
    """A transaction, and who waits for its outcome; `due`: the lease that it ends because its time is up, or 0."""

    __slots__ = ("due", "ops_max", "reply", "tries", "txn")

    def __init__(self, txn: Txn, reply: Reply, ops_max: int, due: int = 0) -> None:
        self.due = due
        self.txn = txn
        self.reply = reply
        self.ops_max = ops_max
        self.tries = 0


class Batch:
    """Transactions that go to etcd as one."""

    __slots__ = ("ended", "guards", "name", "outcomes", "revision", "waiting", "writes")

    def __init__(self, revision: int) -> None:
        self.revision = revision  # the mirror's, that they were decided at
        self.waiting: list[Waiting] = []
        self.outcomes: list[Outcome] = []
        self.guards: list[tuple[bytes, int]] = []
        self.writes: list[Write] = []
        self.ended: list[int] = []
        self.name = b""


def answered(batch: Batch, outcome: Outcome, revision: int) -> TxnResult:
    """What a transaction of a batch answers, which was written at this revision.

    One that changed nothing saw the mirror as it was before the batch, and says so: a later one of the batch may have
    deleted what it read, and whoever watches from the revision of its answer must hear of that. What one that changed
    something looked at, no later one of its batch has changed.
    """
    if outcome.changes:
        return stamped(outcome.result, revision)
    return TxnResult(batch.revision, outcome.result.succeeded, outcome.result.responses)


class Batches:
    """The queue of transactions that wait, and what is made of its front.

    Args:
        name: who writes.
        owner: says whose the leases are that are granted here.
        host: the machine on which registrations are taken here.
        ended: what all are told of the ends of these leases.
    """

    def __init__(
        self,
        layout: Layout,
        name: str,
        owner: Callable[[], str],
        host: str,
        ended: Callable[[Sequence[int]], Ended],
    ) -> None:
        self._layout = layout
        self._name = name
        self._owner = owner
        self._host = host
        self._ended = ended
        self._fence = layout.fence(name)
        self.fence_wanted = False  # the fate of an attempt is open, though the transactions in it are decided anew
        self.queue: deque[Waiting] = deque()  # bounded by those who wait for an answer, and by the leases
        self.made = 0

    def next(self, mvcc: Mvcc, last_mod: int, fence_mod: int) -> Batch | None:
        """Decide as many transactions from the front of the queue as can go together; None: the first was refused.

        Args:
            mvcc: the mirror.
            last_mod: etcd's revision of the last batch that the mirror shows.
            fence_mod: that of this replica's fence.
        """
        batch = Batch(mvcc.revision)
        head = WatchedHead(mvcc)
        size = 0
        for waiting in tuple(self.queue):
            if len(batch.writes) >= _WRITES_MAX or size >= _BATCH_BYTES_MAX:
                break
            try:
                outcome = head.decide_alone(waiting.txn, waiting.ops_max)
                if outcome is None:
                    break
                writes = self._writes(head, outcome)
            except RequestError as error:
                if batch.waiting:
                    break  # told when those before it are written
                self.queue.popleft()
                fail(waiting.reply, error)
                return None
            grown = size + written(outcome.changes)
            if batch.waiting and (len(batch.writes) + len(writes) > _WRITES_MAX or grown > _BATCH_BYTES_MAX):
                break
            waiting.tries += 1
            if waiting.tries > TRIES_MAX and not batch.waiting:
                self.queue.popleft()
                fail(waiting.reply, Busy(f"other replicas were faster {TRIES_MAX} times", retry_after_s=_BUSY_S))
                return None
            size = grown
            batch.waiting.append(waiting)
            batch.outcomes.append(outcome)
            batch.writes += writes
            if waiting.due and outcome.changes:
                batch.ended.append(waiting.due)
            head.take(outcome)  # only now: what one that did not fit looked at is no condition of those that did
        seen = head.keys_seen
        if head.saw_ranges or len(seen) > _GUARDS_MAX or len(batch.writes) > _WRITES_MAX:
            batch.guards = [(self._layout.last, last_mod)]
        else:
            batch.guards = [self._layout.guard(key, mod) for key, mod in seen.items()]
        if self.fence_wanted or (batch.writes and not all(mod for _, mod in batch.guards)):
            # A key that is not there can be made, and deleted by somebody else, and not be there again: a guard that
            # says so would let a second attempt pass, or a first one that is late. Any other revision never returns.
            batch.guards.append((self._fence, fence_mod))
            batch.writes.append(Write(self._fence, b""))
        if batch.writes:
            self.made += 1
            batch.name = f"{self._name}/{self.made}".encode()
            ended = self._ended(batch.ended) if batch.ended else None
            batch.writes.append(Write(self._layout.last, stamp(batch.name, ended)))
        return batch

    def _writes(self, head: WatchedHead, outcome: Outcome) -> list[Write]:
        """What a transaction's changes are in etcd.

        Raises:
            LimitExceeded: they are more than etcd takes at once.
        """
        if len(outcome.changes) > WRITES_OF_ONE_MAX:
            raise LimitExceeded(
                f"a transaction changes {len(outcome.changes)} keys; allowed over etcd: {WRITES_OF_ONE_MAX}",
                limit="WRITES_OF_ONE_MAX",
                allowed=WRITES_OF_ONE_MAX,
            )
        writes: dict[bytes, Write] = {}
        attached: dict[int, None] = {}
        for change in outcome.changes:
            kv = change.kv
            if kv is None:
                writes[change.key] = self._layout.write(change.key, None)
                continue
            value = kv.value
            if change.key.startswith(keys.LEASES):
                record = wire.decode(LeaseRecord, kv.value)
                if not record.owner:
                    value = wire.encode(msgspec.structs.replace(record, owner=self._owner()))
            elif kv.lease and (change.prev is None or change.prev.lease != kv.lease):
                attached[kv.lease] = None
            if self._host and change.key.startswith((keys.INSTANCES, keys.NODES)):
                value = wire.encode(taken_on(wire.decode(Instance, value), self._host))
            writes[change.key] = self._layout.write(change.key, value, kv.lease)
        for lease in attached:
            key = keys.lease(lease)
            if key not in writes:
                standing = head.get(key)
                assert standing is not None
                record = wire.decode(LeaseRecord, standing.value)
                value = wire.encode(msgspec.structs.replace(record, attached=record.attached + 1))
                writes[key] = self._layout.write(key, value)
                head.claim(key)
        return list(writes.values())
