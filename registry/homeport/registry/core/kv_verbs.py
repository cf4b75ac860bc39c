"""The verbs of Consul's transactions on keys: each runs on an overlay, after those before it, and answers or fails.

One table, `VERBS`. A verb returns the keys that its result shows; what it must not do it says by `VerbFailed`, and the
transaction is then rolled back, after the others have been tried for the sake of their errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from homeport.client.core.model import KeyValue
from homeport.registry.core import keys, sessions, user_keys
from homeport.registry.core.overlay import Overlay
from homeport.registry.core.user_keys import KeyDetails, UserKey


class KvOperation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation on a key."""

    verb: str
    key: bytes
    value: bytes = b""
    flags: int = 0
    index: int = 0
    session: str = ""


class VerbFailed(Exception):
    """An operation's condition does not hold; `abandoned` names a session whose keys are still to be released."""

    def __init__(self, message: str, abandoned: str = "") -> None:
        super().__init__(message)
        self.abandoned = abandoned


class Seen(msgspec.Struct, frozen=True):
    """A key in a result, with its value or without."""

    key: UserKey
    with_value: bool = False


def run(overlay: Overlay, operation: KvOperation) -> list[Seen]:
    """Carry out one operation.

    Raises:
        VerbFailed: it does not hold, or there is no such verb.
    """
    verb = VERBS.get(operation.verb)
    if verb is None:
        raise VerbFailed(f"unknown KV verb {quoted(operation.verb)}")
    if not operation.key and operation.verb not in _PREFIXED:
        raise VerbFailed("Must provide key")
    return verb(overlay, operation)


def quoted(text: bytes | str) -> str:
    return '"' + (text.decode("utf-8", "replace") if isinstance(text, bytes) else text) + '"'


def _set(overlay: Overlay, op: KvOperation) -> list[Seen]:
    return [Seen(user_keys.write(overlay, op.key, op.value, op.flags))]


def _cas(overlay: Overlay, op: KvOperation) -> list[Seen]:
    if _index(overlay, op.key) != op.index:
        raise VerbFailed(f"failed to set key {quoted(op.key)}, index is stale")
    return _set(overlay, op)


def _lock(overlay: Overlay, op: KvOperation) -> list[Seen]:
    outcome = sessions.lock(overlay, op.key, op.session, op.value, op.flags)
    if isinstance(outcome, UserKey):
        return [Seen(outcome)]
    key = quoted(op.key)
    match outcome.why:
        case "unknown session":
            raise VerbFailed(f"invalid session {quoted(op.session)}" if op.session else "missing session")
        case "delayed":
            raise VerbFailed(f"failed to lock key {key} due to lock delay")
        case _:
            abandoned = outcome.session if outcome.why == "abandoned" else ""
            raise VerbFailed(f"failed to lock key {key}, lock is already held", abandoned)


def _unlock(overlay: Overlay, op: KvOperation) -> list[Seen]:
    released = sessions.unlock(overlay, op.key, op.session, op.value, op.flags)
    if released is None:
        raise VerbFailed(f"failed to unlock key {quoted(op.key)}, lock isn't held, or is held by another session")
    return [Seen(released)]


def _get(overlay: Overlay, op: KvOperation) -> list[Seen]:
    return [Seen(_existing(overlay, op, f"key {quoted(op.key)} doesn't exist"), with_value=True)]


def _get_or_empty(overlay: Overlay, op: KvOperation) -> list[Seen]:
    found = user_keys.find(overlay, op.key)
    nothing = UserKey(KeyValue(keys.USER + op.key, b"", 0, 0, 0), KeyDetails())
    return [Seen(found or nothing, with_value=True)]


def _get_tree(overlay: Overlay, op: KvOperation) -> list[Seen]:
    return [Seen(found, with_value=True) for found in user_keys.find_under(overlay, op.key)]


def _check_index(overlay: Overlay, op: KvOperation) -> list[Seen]:
    found = _existing(overlay, op, f"failed to check index, key {quoted(op.key)} doesn't exist")
    if found.kv.mod_revision != op.index:
        raise VerbFailed(f"failed index check for key {quoted(op.key)}, current modify index is not {op.index}")
    return [Seen(found)]


def _check_session(overlay: Overlay, op: KvOperation) -> list[Seen]:
    found = _existing(overlay, op, f"failed to check session, key {quoted(op.key)} doesn't exist")
    if found.details.session != op.session:
        raise VerbFailed(
            f"failed session check for key {quoted(op.key)}, "
            f"current session {quoted(found.details.session)} != {quoted(op.session)}"
        )
    return [Seen(found)]


def _check_not_exists(overlay: Overlay, op: KvOperation) -> list[Seen]:
    if overlay.get(keys.USER + op.key) is not None:
        raise VerbFailed(f"key {quoted(op.key)} exists")
    return []


def _delete(overlay: Overlay, op: KvOperation) -> list[Seen]:
    user_keys.delete(overlay, op.key)
    return []


def _delete_cas(overlay: Overlay, op: KvOperation) -> list[Seen]:
    index = _index(overlay, op.key)
    if index not in (0, op.index):
        raise VerbFailed(f"failed to delete key {quoted(op.key)}, index is stale")
    return _delete(overlay, op) if index else []


def _delete_tree(overlay: Overlay, op: KvOperation) -> list[Seen]:
    start = keys.USER + op.key
    for kv in overlay.range(start, keys.prefix_end(start)):
        user_keys.delete(overlay, kv.key[len(keys.USER) :])
    return []


def _index(overlay: Overlay, key: bytes) -> int:
    found = overlay.get(keys.USER + key)
    return 0 if found is None else found.mod_revision


def _existing(overlay: Overlay, op: KvOperation, otherwise: str) -> UserKey:
    found = user_keys.find(overlay, op.key)
    if found is None:
        raise VerbFailed(otherwise)
    return found


_PREFIXED: Final = frozenset({"get-tree", "delete-tree"})  # may name everything

VERBS: Final[dict[str, Callable[[Overlay, KvOperation], list[Seen]]]] = {
    "set": _set,
    "cas": _cas,
    "lock": _lock,
    "unlock": _unlock,
    "get": _get,
    "get-or-empty": _get_or_empty,
    "get-tree": _get_tree,
    "check-index": _check_index,
    "check-session": _check_session,
    "check-not-exists": _check_not_exists,
    "delete": _delete,
    "delete-cas": _delete_cas,
    "delete-tree": _delete_tree,
}
