"""Registrations: an instance is put in place of what stood under its node and id, changed, reported on, and removed.

Each is one transaction, decided on what stands at head and on the condition that it still does; whoever was overtaken
decides anew. A registration hangs on a lease of its own, and each of its ttl checks on another, so that the end of the
one takes the instance and that of the other turns it critical.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from homeport.client.core import wire
from homeport.client.core.errors import Busy, InvalidArgument, LeaseGone, LimitExceeded, NotFound
from homeport.client.core.messages import Deregister, Done, Register, Registered, ReportCheck, SetState
from homeport.client.core.model import Instance, InstanceKey, KeyValue, validate_instance
from homeport.registry.core import keys
from homeport.registry.core.entries import CheckRecord
from homeport.registry.core.health import capped
from homeport.registry.core.limits import KEY_BYTES_MAX, TXN_OPS_MAX
from homeport.registry.core.locality import as_asked
from homeport.registry.core.txn import Compare, Delete, EndLease, Op, Put, PutResult, Txn
from homeport.registry.doubts import Doubts
from homeport.registry.peers import Peer
from homeport.registry.store.answers import ttl_s
from homeport.registry.store.contract import Store, lease_put

_RACE_S: Final = 0.2  # when a call that was overtaken so often may come again
_RACES_MAX: Final = 16  # times a registration is decided anew because another of the same id came first
_OWN_CHECK: Final = "registry connect"  # the longest name of a check that the registry adds itself
_ECHO: Final = 100  # characters of what a client sent that an error repeats
_OWN_OPS_MAX: Final = 4 * TXN_OPS_MAX  # a registration with its checks and their leases


class Standing:
    """A registration at head: what it says, its lease, and the key it stands under."""

    __slots__ = ("create_revision", "instance", "key", "lease", "mod_revision")

    def __init__(self, kv: KeyValue) -> None:
        self.key = kv.key
        self.instance = wire.decode(Instance, kv.value)
        self.lease = kv.lease
        self.create_revision = kv.create_revision
        self.mod_revision = kv.mod_revision


class Registrations:
    """Answers what concerns one registration.

    Args:
        node: of registrations that name none.
    """

    def __init__(self, store: Store, doubts: Doubts, node: str) -> None:
        self._store = store
        self._doubts = doubts
        self._node = node

    async def register(self, request: Register, peer: Peer) -> Registered:
        instance = self._completed(request.instance)
        key = instance.key
        for _ in range(_RACES_MAX):
            await self._decided(_name(key))
            standing = self._standing(key)
            if standing is not None and standing.lease == request.lease and self._says_the_same(standing, instance):
                if self._nothing_to_clear(instance) and (
                    not standing.lease or await ttl_s(self._store.lease_renew(standing.lease))
                ):
                    await self._store.barrier()
                    return self._registered(peer, instance, standing.lease, standing.create_revision)
                # Whoever set the state since meant it, and its owner has another call to say otherwise.
                instance = msgspec.structs.replace(instance, state=standing.instance.state)
            if request.expect_free and standing is not None and standing.lease != request.lease:
                raise LeaseGone(
                    f"another registration has taken the place of {instance.id!r}: {standing.instance.address}:"
                    f"{standing.instance.port}",
                    id=instance.id,
                )
            lease = self._store.new_lease() if instance.ttl_s else 0
            txn = self._registration(instance, lease, standing)
            result = await self._store.commit(txn, ops_max=_OWN_OPS_MAX)
            if result.succeeded:
                put = result.responses[next(at for at, op in enumerate(txn.then) if _is_instance(op))]
                assert isinstance(put, PutResult)
                created = put.prev.create_revision if put.prev is not None else result.revision
                return self._registered(peer, instance, lease, created)
        raise LimitExceeded(
            f"instance {instance.id!r} was registered by others {_RACES_MAX} times meanwhile; is the id unique?",
            limit="races",
            allowed=_RACES_MAX,
        )

    def moved(self, leases: Sequence[int], peer: Peer) -> None:
        """The instances on these leases are heard of over this connection from now on."""
        for lease in dict.fromkeys(leases):
            for key in self._store.mvcc.keys_on(lease):
                if key.startswith(keys.INSTANCES):
                    _, node, id_ = keys.split(key)
                    peer.registered[node, id_] = lease

    def _completed(self, instance: Instance) -> Instance:
        """The registration as stored: with a node, without what only the registry may say."""
        instance = msgspec.structs.replace(
            instance, node=instance.node or self._node, status="passing", mark="", create_revision=0, mod_revision=0
        )
        validate_instance(instance)
        names = [check.name for check in instance.checks] + [_OWN_CHECK]
        derived = [keys.instance(instance.service, *instance.key), *(keys.check(*instance.key, name) for name in names)]
        if max(len(key) for key in derived) > KEY_BYTES_MAX:
            raise InvalidArgument(
                f"service, node, id and check names, percent-encoded, make a key longer than {KEY_BYTES_MAX} bytes",
                field="id",
            )
        return instance

    async def _decided(self, key: bytes) -> None:
        """Let what came before and writes the key be decided: what follows must see it."""
        while (decided := self._store.undecided(key)) is not None:
            await decided

    def _standing(self, key: InstanceKey) -> Standing | None:
        """The registration that stands under a node and id, or with an empty id the node's, as far as it is decided."""
        if not key[1]:
            node = self._store.at_head(keys.node(key[0]))
            return Standing(node[0]) if node else None
        found = self._store.at_head(keys.id_of(*key))
        if not found:
            return None
        registered = self._store.at_head(keys.instance(found[0].value.decode(), *key))
        return Standing(registered[0]) if registered else None

    def _records(self, key: InstanceKey) -> dict[str, KeyValue]:
        """The written statuses of an instance's checks, by name, as far as they are decided."""
        prefix = keys.checks_of(*key)
        return {keys.split(kv.key)[2]: kv for kv in self._store.at_head(prefix, keys.prefix_end(prefix))}

    def _says_the_same(self, standing: Standing, instance: Instance) -> bool:
        """Whether a registration says what stands already, but maybe for the state."""
        return msgspec.structs.replace(as_asked(standing.instance), state=instance.state) == as_asked(instance)

    def _nothing_to_clear(self, instance: Instance) -> bool:
        """Whether the registry found nothing besides the statuses of its checks: no refused connection, say."""
        found = {name for name, record in self._records(instance.key).items() if not _is_told(record)}
        return found <= {check.name for check in instance.checks}

    def _registered(self, peer: Peer, instance: Instance, lease: int, created: int) -> Registered:
        peer.registered[instance.key] = lease
        return Registered(lease, instance.ttl_s, created, self._store.mvcc.revision)

    def _registration(self, instance: Instance, lease: int, standing: Standing | None) -> Txn:
        """One transaction that puts an instance in place of whatever was registered under its node and id."""
        key = instance.key
        own = keys.instance(instance.service, *key)
        records = self._records(key)
        ops: list[Op] = []
        if lease:
            ops.append(lease_put(lease, instance.ttl_s))
        kept: set[str] = set()  # checks that go on as before, with the status they had
        if standing is None:
            unchanged = Compare(keys.id_of(*key), "version", "=", 0)
        else:
            unchanged = Compare(standing.key, "mod", "=", standing.mod_revision)
            kept = {check.name for check in instance.checks if check in standing.instance.checks}
            if standing.key != own:
                ops.append(Delete(standing.key))
        ops.append(Put(own, wire.encode(instance), lease))
        ops.append(Put(keys.id_of(*key), instance.service.encode(), lease))
        written: set[str] = set()
        for check in instance.checks:
            record = records[check.name].value if check.name in kept and check.name in records else None
            if check.kind == "ttl":
                ops += self._ttl_check(instance, check.name, record or wire.encode(CheckRecord(check.initial)))
                written.add(check.name)
            elif record is not None:
                ops.append(Put(keys.check(*key, check.name), record, lease))
                written.add(check.name)
        for name, told in records.items():
            if name not in written and _is_told(told) and all(name != check.name for check in instance.checks):
                ops.append(Put(told.key, told.value, lease))
                written.add(name)
        # Last, when all that goes on has moved to other leases: what still hangs on the old ones goes with them.
        ops += self._end_checks(records, standing.lease if standing else 0, keep=written)
        if standing is not None and standing.lease:
            ops.append(EndLease(standing.lease))
        return Txn((unchanged,), tuple(ops))

    def _ttl_check(self, instance: Instance, name: str, record: bytes) -> list[Op]:
        """A ttl check's status, on a lease of its own whose end turns it critical."""
        ttl_s = next(check.ttl_s for check in instance.checks if check.name == name)
        lease = self._store.new_lease()
        return [lease_put(lease, ttl_s), Put(keys.check(*instance.key, name), record, lease)]

    def _end_checks(self, records: dict[str, KeyValue], lease: int, keep: set[str]) -> list[Op]:
        """Delete statuses but for `keep`, and the leases that ttl checks have of their own."""
        ops: list[Op] = []
        for name, record in records.items():
            if record.lease not in (0, lease):
                ops.append(EndLease(record.lease))
            if name not in keep:
                ops.append(Delete(record.key))
        return ops

    async def deregister(self, request: Deregister, peer: Peer) -> Done:
        key = (request.node or self._node, request.id)
        peer.registered.pop(key, None)
        for _ in range(_RACES_MAX):
            await self._decided(_name(key))
            standing = self._owned(key, request.lease)
            if standing is None:
                break
            ops: list[Op] = [Delete(standing.key), Delete(keys.id_of(*key))]
            ops += self._end_checks(self._records(key), standing.lease, keep=set())
            if standing.lease:
                ops.append(EndLease(standing.lease))
            unchanged = Compare(standing.key, "mod", "=", standing.mod_revision)
            result = await self._store.commit(Txn((unchanged,), tuple(ops)), ops_max=_OWN_OPS_MAX)
            if result.succeeded:
                return Done(True, result.revision)
        else:
            raise _overtaken(request.id)
        await self._store.barrier()
        return Done(self._doubts.forget(key), self._store.mvcc.revision)

    async def set_state(self, request: SetState, _peer: Peer) -> Done:
        key = (request.node or self._node, request.id)
        revision = 0
        for _ in range(_RACES_MAX):
            await self._decided(_name(key))
            standing = self._owned(key, request.lease)
            if standing is None:
                break
            if standing.instance.state == request.state:
                revision = standing.mod_revision
                break
            new = msgspec.structs.replace(standing.instance, state=request.state)
            unchanged = Compare(standing.key, "mod", "=", standing.mod_revision)
            result = await self._store.commit(Txn((unchanged,), (Put(standing.key, wire.encode(new), standing.lease),)))
            if result.succeeded:
                return Done(True, result.revision)
        else:
            raise _overtaken(request.id)
        await self._store.barrier()
        return Done(False, revision or self._store.mvcc.revision)

    def _owned(self, key: InstanceKey, lease: int) -> Standing | None:
        """The registration, if it stands and `lease` (0: anyone's) is the one that made it."""
        standing = self._standing(key)
        return None if standing is None or (lease and standing.lease != lease) else standing

    async def report_check(self, request: ReportCheck, _peer: Peer) -> Done:
        key = (request.node or self._node, request.id)
        await self._decided(_name(key))
        await self._decided(keys.check(*key, request.check))
        standing = self._standing(key)
        checks = standing.instance.checks if standing is not None else ()
        check = next((check for check in checks if check.name == request.check), None)
        if standing is None or check is None:
            what = "instance" if standing is None else f"check {request.check[:_ECHO]!r} on instance"
            raise NotFound(f"there is no {what} {request.id[:_ECHO]!r} on node {key[0][:_ECHO]!r}")
        if check.kind != "ttl":
            raise InvalidArgument(
                f"check {check.name!r} is of kind {check.kind}; only ttl checks are reported", field="check"
            )
        record = wire.encode(CheckRecord(request.status, capped(request.output)))
        old = self._records(key).get(check.name)
        if old is not None and await ttl_s(self._store.lease_renew(old.lease)) and old.value == record:
            await self._store.barrier()
            return Done(False, self._store.mvcc.revision)
        ops = self._ttl_check(standing.instance, check.name, record)
        if old is not None:
            ops.append(EndLease(old.lease))
        result = await self._store.commit(
            Txn((Compare(standing.key, "create", "=", standing.create_revision),), tuple(ops))
        )
        return Done(result.succeeded, result.revision)


def _is_told(record: KeyValue) -> bool:
    """Whether a status is of a check that others look after: it goes on, whoever registers the instance anew."""
    return bool(wire.decode(CheckRecord, record.value).extra)


def _is_instance(op: Op) -> bool:
    return isinstance(op, Put) and op.key.startswith(keys.INSTANCES)


def _name(key: InstanceKey) -> bytes:
    """The key that every registration of an instance, or with an empty id of a node, writes."""
    return keys.id_of(*key) if key[1] else keys.node(key[0])


def _overtaken(id: str) -> Busy:  # noqa: A002 - the field's name everywhere else
    return Busy(f"others changed {id[:_ECHO]!r} {_RACES_MAX} times meanwhile; try again", retry_after_s=_RACE_S)
