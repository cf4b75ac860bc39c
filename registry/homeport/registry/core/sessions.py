"""Sessions and the locks that hang on them: who may take a key, and what becomes of it when its holder ends.

A session is `n/<session>` on a lease of its own, so it ends when that lease does: by expiry, by `destroy`, or because a
check it follows turned critical. What follows, in this order:

    behaviour delete    its keys hang on the same lease, and go in the same revision. `d/<key>`, written on no lease
                        when the key was locked, stays, and is then put on a lease as long as the lock delay.
    behaviour release   its keys stay. A key whose holder is gone can be locked by nobody until a transaction, which
                        anyone may run, clears the holder and writes `d/<key>` on a lease as long as the lock delay.

So between the end and that transaction nobody can slip in, whenever it comes, and a crash in between changes nothing.
While `d/<key>` is on a lease nobody may lock the key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from homeport.client.core import wire
from homeport.client.core.model import Status
from homeport.registry.core import keys, user_keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.overlay import Overlay
from homeport.registry.core.txn import Put
from homeport.registry.core.user_keys import KeyDetails, UserKey

Behaviour = Literal["release", "delete"]

TTL_S_MIN: Final = 10.0  # Consul's bounds
TTL_S_MAX: Final = 86_400.0
LEASE_TTLS: Final = (
    2.0  # a session's lease is this many TTLs, as in Consul; clients halve what they ask for because of it
)
LOCK_DELAY_S_DEFAULT: Final = 15.0
LOCK_DELAY_S_MAX: Final = 60.0  # Consul's cap: longer ones are taken and shown, and end here
ENDLESS_S: Final = 100 * 365 * 86_400.0  # the lease of a session without a TTL: it ends by other ways


class Session(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What stands under `n/<session>`."""

    id: str
    node: str
    lease: int
    name: str = ""
    behaviour: Behaviour = "release"
    ttl_s: float = 0.0  # 0: none
    ttl: str = ""  # as it was asked for
    lock_delay_s: float = LOCK_DELAY_S_DEFAULT
    node_checks: tuple[str, ...] = ()
    service_checks: tuple[tuple[str, str], ...] | None = None  # CheckID and namespace, as asked for
    # What ends it: checks, each by instance id (empty: its node's) and name; with no name either, the node itself.
    follows: tuple[tuple[str, str], ...] = ()

    @property
    def lease_ttl_s(self) -> float:
        return self.ttl_s * LEASE_TTLS or ENDLESS_S

    @property
    def delay_s(self) -> float:
        """The lock delay as it is kept."""
        return min(max(self.lock_delay_s, 0.0), LOCK_DELAY_S_MAX)


class Delay(msgspec.Struct, frozen=True):
    """What stands under `d/<key>`: on a lease it runs, on none it waits for its session's end."""

    session: str
    delay_s: float


class Refused(msgspec.Struct, frozen=True):
    """Why a lock was not taken; `abandoned` names a session that is gone and whose keys are still to be released."""

    why: Literal["held", "delayed", "unknown session", "abandoned"]
    session: str = ""


# --- taking and giving back -------------------------------------------------------------------------------------


def lock(overlay: Overlay, name: bytes, session_id: str, value: bytes, flags: int) -> UserKey | Refused:
    """Write a key as its holder, becoming that if nobody is: its lock index grows only then."""
    delayed = _delayed(overlay, name)
    if delayed is not None:
        return delayed
    record = overlay.get(keys.session(session_id))
    if record is None:
        return Refused("unknown session", session_id)
    session = wire.decode(Session, record.value)
    found = user_keys.find(overlay, name)
    old = found.details if found else KeyDetails()
    if old.session and old.session != session_id:
        return Refused("held" if overlay.get(keys.session(old.session)) else "abandoned", old.session)
    deletes = session.behaviour == "delete"
    new = KeyDetails(
        flags=flags,
        lock_index=old.lock_index + (not old.session),
        session=session_id,
        lock_delay_s=0.0 if deletes else session.delay_s,
    )
    if found is not None and found.kv.value == value and new == old:
        return found
    if deletes and session.delay_s:
        overlay.put(keys.DELAYS + name, wire.encode(Delay(session_id, session.delay_s)))
    lease = session.lease if deletes else found.kv.lease if found else 0
    return user_keys.store(overlay, name, value, new, lease)


def unlock(overlay: Overlay, name: bytes, session_id: str, value: bytes, flags: int) -> UserKey | None:
    """Write a key and give it back, without a delay; None if that session does not hold it."""
    found = user_keys.find(overlay, name)
    if found is None or not session_id or found.details.session != session_id:
        return None
    reserved = overlay.get(keys.DELAYS + name)
    if reserved is not None and not reserved.lease:
        overlay.delete(reserved.key)
    record = overlay.get(keys.session(session_id))
    lease = found.kv.lease
    if record is not None and wire.decode(Session, record.value).lease == lease:
        lease = 0  # the key was to go with the session, and is free now
    new = KeyDetails(flags=flags, lock_index=found.details.lock_index)
    return user_keys.store(overlay, name, value, new, lease)


def _delayed(overlay: Overlay, name: bytes) -> Refused | None:
    found = overlay.get(keys.DELAYS + name)
    if found is None:
        return None
    if found.lease:
        return Refused("delayed")
    reserving = wire.decode(Delay, found.value).session
    return None if overlay.get(keys.session(reserving)) else Refused("abandoned", reserving)


# --- when a session has ended -----------------------------------------------------------------------------------


def release(overlay: Overlay, name: bytes, session_id: str, grant: Callable[[float], Put]) -> None:
    """Give back a key that an ended session held, and start its lock delay on a lease that `grant` makes."""
    if overlay.get(keys.session(session_id)) is not None:
        return
    found = user_keys.find(overlay, name)
    if found is None or found.details.session != session_id:
        left = overlay.get(keys.USER_DETAILS + name)
        if left is not None and wire.decode(KeyDetails, left.value).session == session_id:
            overlay.delete(left.key)  # the key has gone without it
        return
    delay_s = found.details.lock_delay_s
    new = KeyDetails(flags=found.details.flags, lock_index=found.details.lock_index)
    user_keys.store(overlay, name, found.kv.value, new, found.kv.lease)
    if delay_s:
        _delay(overlay, name, Delay(session_id, delay_s), grant)


def settle_delay(overlay: Overlay, name: bytes, session_id: str, held: bool, grant: Callable[[float], Put]) -> None:
    """Start the delay that waited for a session's end, if it held the key until then; else forget it."""
    if overlay.get(keys.session(session_id)) is not None:
        return
    reserved = overlay.get(keys.DELAYS + name)
    if reserved is None or reserved.lease:
        return
    delay = wire.decode(Delay, reserved.value)
    if delay.session != session_id:
        return
    if held:
        _delay(overlay, name, delay, grant)
    else:
        overlay.delete(reserved.key)


def _delay(overlay: Overlay, name: bytes, delay: Delay, grant: Callable[[float], Put]) -> None:
    lease = grant(delay.delay_s)
    overlay.grant(lease)
    overlay.put(keys.DELAYS + name, wire.encode(delay), keys.lease_number(lease.key))


# --- what a session stands on -----------------------------------------------------------------------------------


def check_status(catalogue: Catalogue, node: str, id: str, name: str) -> Status | None:  # noqa: A002
    """The status of a check of an instance, or with an empty id of a node; None if there is none such."""
    entry = catalogue.find(node, id)
    if entry is None:
        return None
    record = catalogue.checks.one((node, id), name)
    if record is not None:
        return record.status
    check = next((one for one in entry.registered.checks if one.name == name), None)
    if check is None:
        return None
    return "critical" if check.kind == "ttl" else check.initial


def is_founded(session: Session, catalogue: Catalogue) -> bool:
    """Whether everything that the session follows is there and not critical."""
    return all(
        check_status(catalogue, session.node, id_, name) in ("passing", "warning")
        if name
        else session.node in catalogue.nodes
        for id_, name in session.follows
    )


def load(mvcc: Mvcc, session_id: str) -> Session | None:
    """The session, if it stands."""
    found = mvcc.get(keys.session(session_id))
    return None if found is None else wire.decode(Session, found.value)
