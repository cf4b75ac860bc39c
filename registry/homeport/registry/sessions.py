"""Sessions, carried out: made, renewed, ended, and their keys seen to when they have ended. `core/sessions.py` decides.

Follows the store: which session holds which keys, which locks wait for a session's end to start their delay, and which
sessions stand on which instance's checks. All of it is found anew at start, so an end that a crash interrupted is
carried on. Nothing is committed from within a listener: what is due is done by a task soon after.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, TypeVar

from homeport.client.core import wire
from homeport.client.core.backoff import Rng
from homeport.client.core.errors import Busy, Closed, HomeportError
from homeport.client.core.model import InstanceKey
from homeport.registry.core import keys, sessions
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.limits import TXN_OPS_MAX
from homeport.registry.core.overlay import Overlay
from homeport.registry.core.sessions import Delay, Session
from homeport.registry.core.txn import Change, Compare, EndLease, Put, Range, Txn, TxnResult
from homeport.registry.core.user_keys import KeyDetails
from homeport.registry.store.answers import ttl_s
from homeport.registry.store.contract import Store, lease_put
from homeport.registry.trouble import Trouble

_log = logging.getLogger("homeport.registry.sessions")

T = TypeVar("T")
K = TypeVar("K")
M = TypeVar("M")

_KEYS_AT_ONCE: Final = 64  # given back in one transaction: each is some eight operations
_RETRY_S: Final = 1.0  # when a store that could not write is tried again
_HASTY_TRIES: Final = 3  # of a decision that others overtook, before it waits for its turn among the like
_TRIES_MAX: Final = 64  # in all: then somebody writes these keys without a pause


class Sessions:
    """The sessions of one registry. `start` it on the loop that will use it, after the catalogue has loaded."""

    def __init__(self, store: Store, catalogue: Catalogue, rng: Rng) -> None:
        self._store = store
        self._catalogue = catalogue
        self._rng = rng
        self._held: dict[str, dict[bytes, bool]] = {}  # session -> the keys it holds
        self._reserved: dict[str, dict[bytes, bool]] = {}  # and whose delay waits for it; False: lost before its end
        self._following: dict[InstanceKey, dict[str, bool]] = {}  # instance -> sessions that stand on its checks
        self._settling: dict[str, asyncio.Task[None]] = {}
        self._shaken: dict[str, bool] = {}  # sessions to be looked at because what they stand on changed
        self._looking: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._releasing = Trouble(_log, "keys of ended sessions wait to be released")
        self._ending = Trouble(_log, "sessions that stand on nothing wait to be ended")

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        mvcc = self._store.mvcc
        for prefix in (keys.DELAYS, keys.USER_DETAILS, keys.SESSIONS):
            for key in mvcc.keys(prefix, keys.prefix_end(prefix)):
                self._take_in(Change(key, mvcc.get(key), None))
        for session_id in dict.fromkeys((*self._held, *self._reserved)):
            if mvcc.get(keys.session(session_id)) is None:
                self._settle_soon(session_id)
        for following in self._following.values():
            self._shaken.update(following)
        self._look_soon()
        self._store.listen(self._revision)

    async def close(self) -> None:
        """Stop seeing to things. Idempotent."""
        self._loop = None
        tasks = [*self._settling.values(), *([self._looking] if self._looking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what is asked for --------------------------------------------------------------------------------------

    def new_id(self) -> str:
        return str(uuid.UUID(int=self._rng.randrange(1 << 128), version=4))

    async def create(self, session: Session) -> bool:
        """Make a session, on the lease it names; False if a check that it follows turned critical meanwhile.

        Raises:
            HomeportError: the store refused; nothing changed.
        """
        record = Put(keys.session(session.id), wire.encode(session), session.lease)
        standing = []
        for id_, name in session.follows:
            entry = self._catalogue.find(session.node, id_)
            if entry is None:
                if name:
                    return False
                continue  # a node that nobody registered, with something on it: looked at again below
            key = keys.registered(entry.registered.service, session.node, id_)
            standing.append(Compare(key, "mod", "=", entry.registered.mod_revision))
        puts = (lease_put(session.lease, session.lease_ttl_s), record)
        result = await self._store.commit(Txn(tuple(standing), puts))
        if result.succeeded and not sessions.is_founded(session, self._catalogue):
            await self.destroy(session.id)
            return False
        return result.succeeded

    def find(self, session_id: str) -> Session | None:
        return sessions.load(self._store.mvcc, session_id)

    async def renew(self, session_id: str) -> Session | None:
        """Start a session's time anew; None if it is gone.

        Raises:
            ReadOnly: this replica cannot say for how long it lives.
        """
        session = self.find(session_id)
        return session if session and await ttl_s(self._store.lease_renew(session.lease)) else None

    async def destroy(self, session_id: str) -> None:
        """End a session and see to its keys before returning; one that is gone is left so.

        Cancelling it forgets the answer, not the effect.
        """
        session = self.find(session_id)
        if session is not None:
            key = keys.session(session_id)
            await self._store.commit(Txn((Compare(key, "version", ">", 0),), (EndLease(session.lease),)))
        await self.settled(session_id)

    async def settled(self, session_id: str) -> None:
        """Return when nothing is left to do for a session that has ended."""
        if self._settle_soon(session_id):
            await asyncio.shield(self._settling[session_id])

    async def decide(self, attempt: Callable[[Overlay], T]) -> tuple[T, TxnResult | None]:
        """Run `attempt` on an overlay and commit what it wrote, again and again until nobody came between.

        Returns:
            What it returned, and the outcome of the transaction if it wrote anything. An attempt that wrote nothing
            is the state at one revision that was acknowledged to everyone.

        Raises:
            Busy: others came between all of many times.
            HomeportError: the store refused; nothing changed.
        """
        for number in range(_TRIES_MAX):
            if number < _HASTY_TRIES:
                done = await self._decide_once(attempt)
            else:
                async with self._turn:
                    done = await self._decide_once(attempt)
            if done is not None:
                return done
        raise Busy(f"others changed the same keys {_TRIES_MAX} times meanwhile; try again", retry_after_s=1)

    async def _decide_once(self, attempt: Callable[[Overlay], T]) -> tuple[T, TxnResult | None] | None:
        overlay = Overlay(self._store.mvcc)
        decided = attempt(overlay)
        txn = overlay.txn()
        if not txn.then:
            return decided, None
        result = await self._store.commit(txn, ops_max=max(TXN_OPS_MAX, len(txn.compare), len(txn.then)))
        return (decided, result) if result.succeeded else None

    # --- following the store ------------------------------------------------------------------------------------

    def _revision(self, _revision: int, changes: tuple[Change, ...]) -> None:
        ended: list[str] = []
        for change in changes:
            if change.key.startswith((keys.DELAYS, keys.USER_DETAILS, keys.SESSIONS)):
                self._take_in(change)
                if change.kv is None and change.prev is not None and change.key.startswith(keys.SESSIONS):
                    ended.append(wire.decode(Session, change.prev.value).id)
            elif self._following and change.key.startswith(keys.INSTANCES):
                _, node, id_ = keys.split(change.key)
                self._shaken.update(self._following.get((node, id_), {}))
                self._shaken.update(self._following.get((node, ""), {}))  # which may be there for it alone
            elif self._following and change.key.startswith(keys.NODES):
                self._shaken.update(self._following.get((keys.split(change.key)[0], ""), {}))
            elif self._following and change.key.startswith(keys.CHECKS):
                node, id_, _ = keys.split(change.key)
                self._shaken.update(self._following.get((node, id_), {}))
        for session_id in ended:
            self._mark_lost(session_id, changes)
            if self._loop is not None and (session_id in self._held or session_id in self._reserved):
                self._loop.call_soon(self._settle_soon, session_id)
        self._look_soon()

    def _take_in(self, change: Change) -> None:
        key = change.key
        for kv, act in ((change.prev, _discard), (change.kv, _add)):
            if kv is None:
                continue
            if key.startswith(keys.SESSIONS):
                session = wire.decode(Session, kv.value)
                for id_, _ in session.follows:
                    act(self._following, (session.node, id_), session.id)
            elif key.startswith(keys.USER_DETAILS):
                holder = wire.decode(KeyDetails, kv.value).session
                if holder:
                    act(self._held, holder, key[len(keys.USER_DETAILS) :])
            elif not kv.lease:
                act(self._reserved, wire.decode(Delay, kv.value).session, key[len(keys.DELAYS) :])

    def _mark_lost(self, session_id: str, changes: Iterable[Change]) -> None:
        """Of the delays that waited for a session, those count whose key went with it."""
        reserved = self._reserved.get(session_id)
        if reserved:
            gone = {change.key for change in changes if change.kv is None}
            for name in reserved:
                reserved[name] = keys.USER + name in gone

    # --- seeing to it -------------------------------------------------------------------------------------------

    def _settle_soon(self, session_id: str) -> bool:
        """Give back what an ended session held; False if there is nothing to do."""
        if session_id in self._settling:
            return True
        if self._loop is None or not (session_id in self._held or session_id in self._reserved):
            return False
        task = self._loop.create_task(self._settle(session_id), name=f"release the keys of session {session_id}")
        self._settling[session_id] = task
        task.add_done_callback(lambda _: self._settling.pop(session_id, None))
        return True

    async def _settle(self, session_id: str) -> None:
        gone = Compare(keys.session(session_id), "version", "=", 0)
        while session_id in self._held or session_id in self._reserved:
            try:
                result = await self._store.commit(
                    Txn((gone,), tuple(self._settlements(session_id)), (Range(gone.key),)), ops_max=64 * _KEYS_AT_ONCE
                )
                self._releasing.over()
                if not result.succeeded:
                    return  # it stands
            except Closed:
                return
            except HomeportError as error:
                self._releasing.met(error)
                await asyncio.sleep(_RETRY_S)

    def _settlements(self, session_id: str) -> list[Txn]:
        """Transactions of their own, so that one key that was changed meanwhile does not hold up the others."""
        found = []
        for name in islice(self._held.get(session_id, ()), _KEYS_AT_ONCE):
            overlay = Overlay(self._store.mvcc)
            sessions.release(overlay, name, session_id, self._grant)
            found.append(overlay.txn())
        for name, held in islice(self._reserved.get(session_id, {}).items(), _KEYS_AT_ONCE):
            overlay = Overlay(self._store.mvcc)
            sessions.settle_delay(overlay, name, session_id, held, self._grant)
            found.append(overlay.txn())
        return found

    def _grant(self, ttl_s: float) -> Put:
        return lease_put(self._store.new_lease(), ttl_s)

    def _look_soon(self) -> None:
        if self._shaken and self._loop is not None and (self._looking is None or self._looking.done()):
            self._looking = self._loop.create_task(self._look(), name="end sessions whose checks are critical")

    async def _look(self) -> None:
        """End the sessions that no longer stand on anything."""
        while self._shaken:
            session_id = next(iter(self._shaken))
            del self._shaken[session_id]
            session = self.find(session_id)
            if session is None or sessions.is_founded(session, self._catalogue):
                continue
            try:
                await self.destroy(session_id)
                self._ending.over()
                _log.info("session %s ended: a check that it stands on is critical or gone", session_id)
            except Closed:
                return
            except HomeportError as error:
                self._ending.met(error)
                self._shaken[session_id] = True
                await asyncio.sleep(_RETRY_S)


def _add(index: dict[K, dict[M, bool]], key: K, member: M) -> None:
    index.setdefault(key, {})[member] = True


def _discard(index: dict[K, dict[M, bool]], key: K, member: M) -> None:
    members = index.get(key, {})
    members.pop(member, None)
    if not members:
        index.pop(key, None)
