"""Users' keys over RPC and in process: read from what is durable, and written by one transaction each."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final

from homeport.client.core.errors import CasFailed, InvalidArgument
from homeport.client.core.messages import (
    KvDelete,
    KvFound,
    KvGet,
    KvList,
    KvPage,
    KvPut,
    KvTxn,
    KvTxnDone,
    KvWritten,
)
from homeport.client.core.model import KeyValue
from homeport.client.core.txn import Nested
from homeport.registry.core import keys, user_txn
from homeport.registry.core.limits import KEY_BYTES_MAX, PAGE_BYTES
from homeport.registry.core.pages import ENTRY_BYTES
from homeport.registry.core.txn import Compare, Delete, DeleteResult, Put, Range, RangeResult, Txn, TxnResult
from homeport.registry.core.user_txn import bare
from homeport.registry.peers import Peer
from homeport.registry.results import Commit
from homeport.registry.store.contract import Store

_PAGE_ENTRIES: Final = 4096  # of a list: a page of small ones is a few hundred microseconds of work


class Kv:
    """Answers what concerns users' keys."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, request: KvGet, _peer: Peer) -> KvFound | Coroutine[Any, Any, KvFound]:
        return self._newest(request) if request.newest else self._found(request)

    async def _newest(self, request: KvGet) -> KvFound:
        await self._store.barrier()
        return self._found(request)

    def _found(self, request: KvGet) -> KvFound:
        found = self._store.mvcc.get(keys.USER + request.key)
        return KvFound(self._store.mvcc.revision, None if found is None else bare(found))

    def put(self, request: KvPut, _peer: Peer) -> Commit[KvWritten]:
        if not request.key:
            raise InvalidArgument(f"the key is empty; allowed: 1 to {KEY_BYTES_MAX} bytes", field="key")
        key = keys.USER + request.key
        put = Put(key, request.value, request.lease)
        cas = request.cas
        if cas is None:
            return Commit(Txn(then=(put,)), _written)

        def shape(result: TxnResult) -> KvWritten:
            _check_cas(result, cas)
            return _written(result)

        return Commit(Txn((Compare(key, "mod", "=", cas),), (put,), (Range(key),)), shape)

    def delete(self, request: KvDelete, _peer: Peer) -> Commit[KvWritten]:
        key = keys.USER + request.key
        if request.prefix and request.cas is not None:
            raise InvalidArgument("cas goes with one key, not with prefix", field="cas")
        demand = () if request.cas is None else (Compare(key, "mod", "=", request.cas),)
        end = keys.prefix_end(key) if request.prefix else None
        details = keys.USER_DETAILS + request.key
        also = Delete(details, keys.prefix_end(details) if request.prefix else None)

        def shape(result: TxnResult) -> KvWritten:
            _check_cas(result, request.cas)
            deleted = result.responses[0]
            assert isinstance(deleted, DeleteResult)
            return KvWritten(result.revision, len(deleted.prevs))

        return Commit(Txn(demand, (Delete(key, end), also), (Range(key),)), shape)

    def list(self, request: KvList, _peer: Peer) -> KvPage:
        prefix = keys.USER + request.prefix
        start = prefix if request.after is None else max(prefix, keys.USER + request.after + b"\0")
        revision = request.revision or self._store.mvcc.revision
        most = request.limit or _PAGE_ENTRIES
        if request.limit < 0:
            raise InvalidArgument(f"limit is {request.limit}; allowed: 0 (a page) or more", field="limit")
        found = self._store.mvcc.range(
            Range(
                start,
                keys.prefix_end(prefix),
                revision,
                min(most, _PAGE_ENTRIES),
                keys_only=request.keys_only,
                uncounted=True,
            )
        )
        entries: list[KeyValue] = []
        size = 0
        for kv in found.entries:
            size += len(kv.key) + len(kv.value) + ENTRY_BYTES
            if entries and size > PAGE_BYTES:
                break
            entries.append(bare(kv))
        return KvPage(revision, tuple(entries), found.count > len(entries))

    def txn(self, request: KvTxn, _peer: Peer) -> Commit[KvTxnDone]:
        asked = Nested(request.compare, request.then, request.orelse)

        def shape(result: TxnResult) -> KvTxnDone:
            done = user_txn.answered(asked, result)
            return KvTxnDone(result.revision, done.succeeded, done.responses)

        return Commit(user_txn.compiled(asked, self._store.mvcc), shape, user_txn.STORE_OPS_MAX)


def _written(result: TxnResult) -> KvWritten:
    return KvWritten(result.revision, 1)


def _check_cas(result: TxnResult, cas: int | None) -> None:
    if result.succeeded:
        return
    found = result.responses[0]
    assert isinstance(found, RangeResult)
    revision = found.entries[0].mod_revision if found.entries else 0
    raise CasFailed(f"the key is at revision {revision}, not {cas}", revision=revision)
