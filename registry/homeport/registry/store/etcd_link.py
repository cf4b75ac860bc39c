"""An etcd cluster over gRPC: the only module that knows grpc and aetcd's generated stubs.

One channel to each endpoint; all calls go to the present one, and the first that is not answered moves everything, the
watch too, to the next. etcd limits a transaction to 128 operations on each level, so larger ones are nested.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import grpc
from aetcd import rpc

from homeport.registry.store.etcd_cluster import (
    Event,
    HistoryGone,
    Page,
    Refused,
    Stored,
    TooLarge,
    TxnAnswer,
    Unreachable,
    Write,
)

T = TypeVar("T")

_CALL_S: Final = 2.0  # for one answer; an election takes about one second with etcd's defaults
_OPS_MAX: Final = 128  # etcd's, of compares and operations each; what a level takes the one below it has less
_PART_OPS: Final = 60  # of the parts of a transaction that is larger
_MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024  # a page of large values, or the watch of a large transaction
# A member that stands still is noticed by pings; etcd takes pings more often than each 5 s for an attack.
_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
    ("grpc.use_local_subchannel_pool", 1),
)
_HAS_LEADER: Final = ("hasleader", "true")  # a member without a leader shall say so, and not serve what is stale
_ELSEWHERE: Final = (  # another member may do better
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.ABORTED,
)


class EtcdLink:
    """A cluster at these endpoints.

    Args:
        endpoints: "host:port" each.
        ca, cert, key: PEM; with `ca`, or `cert` and `key`, connections are TLS.
        user, password: for a cluster with authentication.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        ca: bytes | None = None,
        cert: bytes | None = None,
        key: bytes | None = None,
        user: str = "",
        password: str = "",
    ) -> None:
        tls = ca is not None or cert is not None
        credentials = grpc.ssl_channel_credentials(ca, key, cert) if tls else None
        self._endpoints = list(endpoints)
        self._channels = [
            grpc.aio.insecure_channel(endpoint, _OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(endpoint, credentials, _OPTIONS)
            for endpoint in self._endpoints
        ]
        self._user = user
        self._password = password
        self._token = ""
        self._at = 0
        self._moved = asyncio.Event()  # set, and replaced, when the endpoint changes

    @property
    def endpoint(self) -> str:
        return self._endpoints[self._at]

    async def close(self) -> None:
        self._moved.set()
        for channel in self._channels:
            await channel.close()

    # --- calls --------------------------------------------------------------------------------------------------

    async def txn(self, guards: Sequence[tuple[bytes, int]], writes: Sequence[Write], read: bytes) -> TxnAnswer:
        compare = [
            rpc.Compare(key=key, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=revision)
            for key, revision in guards
        ]
        request = rpc.TxnRequest(
            compare=compare,
            success=_nested([_write(write) for write in writes]),
            failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=read))],
        )
        answer = await self._call(lambda channel: rpc.KVStub(channel).Txn, request)
        if answer.succeeded:
            return TxnAnswer(True, answer.header.revision, None)
        found = answer.responses[0].response_range.kvs
        return TxnAnswer(False, answer.header.revision, _stored(found[0]) if found else None)

    async def page(self, key: bytes, end: bytes | None, revision: int, limit: int) -> Page:
        request = rpc.RangeRequest(key=key, range_end=_end(end), revision=revision, limit=limit)
        answer = await self._call(lambda channel: rpc.KVStub(channel).Range, request)
        return Page([_stored(kv) for kv in answer.kvs], answer.header.revision, answer.more)

    async def grant(self, ttl_s: int) -> int:
        answer = await self._call(lambda channel: rpc.LeaseStub(channel).LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl_s))
        return int(answer.ID)

    async def keep_alive(self, lease: int) -> bool:
        request = rpc.LeaseKeepAliveRequest(ID=lease)

        def once(channel: Any) -> Callable[..., Awaitable[Any]]:
            async def ask(request: Any, timeout: float, metadata: Any) -> Any:
                stream = rpc.LeaseStub(channel).LeaseKeepAlive(iter((request,)), timeout=timeout, metadata=metadata)
                return await stream.read()

            return ask

        answer = await self._call(once, request)
        return answer is not grpc.aio.EOF and answer.TTL > 0

    async def revoke(self, lease: int) -> None:
        await self._call(lambda channel: rpc.LeaseStub(channel).LeaseRevoke, rpc.LeaseRevokeRequest(ID=lease))

    async def _call(self, method: Callable[[Any], Callable[..., Awaitable[Any]]], request: Any) -> Any:
        """Ask the present member, once."""
        at = self._at
        for again in (False, True):
            try:
                metadata = (_HAS_LEADER, *await self._credentials())
                return await method(self._channels[at])(request, timeout=_CALL_S, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.UNAUTHENTICATED and self._user and not again:
                    self._token = ""
                    continue
                raise self._failed(at, error) from None
        raise AssertionError("unreachable: the second attempt returns or raises")

    async def _credentials(self) -> tuple[tuple[str, str], ...]:
        if not self._user:
            return ()
        if not self._token:
            request = rpc.AuthenticateRequest(name=self._user, password=self._password)
            answer = await rpc.AuthStub(self._channels[self._at]).Authenticate(request, timeout=_CALL_S)
            self._token = answer.token
        return (("token", self._token),)

    def _failed(self, at: int, error: grpc.aio.AioRpcError) -> Unreachable | Refused | HistoryGone:
        details = error.details() or error.code().name
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            self._token = ""  # it has expired, or the cluster was restarted
        if error.code() == grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
            return HistoryGone(details)
        if error.code() in _ELSEWHERE:
            failed = Unreachable(f"etcd at {self._endpoints[at]}: {details}")
            if at == self._at:
                self._at = (at + 1) % len(self._endpoints)
                self._moved.set()
                self._moved = asyncio.Event()
            return failed
        refused = TooLarge if "larger than max" in details else Refused  # "too many requests" is of that code, too
        return refused(f"etcd at {self._endpoints[at]}: {details}")

    # --- watching -----------------------------------------------------------------------------------------------

    async def watch(self, key: bytes, end: bytes, start_revision: int) -> AsyncIterator[tuple[int, list[Event]]]:
        at, moved = self._at, self._moved
        create = rpc.WatchCreateRequest(key=key, range_end=_end(end), start_revision=start_revision)
        stop = asyncio.Event()

        async def requests() -> AsyncIterator[Any]:
            yield rpc.WatchRequest(create_request=create)
            await stop.wait()  # the stream ends with its requests

        try:
            metadata = (_HAS_LEADER, *await self._credentials())
            call = rpc.WatchStub(self._channels[at]).Watch(requests(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._failed(at, error) from None
        moving = asyncio.ensure_future(moved.wait())
        try:
            while True:
                reading = asyncio.ensure_future(call.read())
                await asyncio.wait((reading, moving), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    raise Unreachable(f"etcd at {self._endpoints[at]} is given up for another member")
                answer = reading.result()
                if answer is grpc.aio.EOF or (answer.canceled and not answer.compact_revision):
                    self._token = ""  # that, too, may be the reason; a mirror whose cluster is quiet asks nothing else
                    raise Unreachable(f"etcd at {self._endpoints[at]} ended the watch")
                if answer.compact_revision:
                    raise HistoryGone(f"revision {start_revision} is compacted; {answer.compact_revision} is not")
                for revision, events in _by_revision(answer.events):
                    yield revision, events
        except grpc.aio.AioRpcError as error:
            raise self._failed(at, error) from None
        finally:
            stop.set()
            moving.cancel()
            call.cancel()


def _end(end: bytes | None) -> bytes:
    """etcd's word for a range: nothing for one key, a zero byte for no upper bound."""
    return b"" if end is None else end or b"\0"


def _stored(kv: Any) -> Stored:
    return Stored(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version)


def _write(write: Write) -> Any:
    if write.value is None:
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=write.key))
    return rpc.RequestOp(request_put=rpc.PutRequest(key=write.key, value=write.value, lease=write.lease))


def _nested(ops: list[Any]) -> list[Any]:
    if len(ops) <= _OPS_MAX:
        return ops
    parts = [ops[at : at + _PART_OPS] for at in range(0, len(ops), _PART_OPS)]
    return [rpc.RequestOp(request_txn=rpc.TxnRequest(success=part)) for part in parts]


def _by_revision(events: Sequence[Any]) -> list[tuple[int, list[Event]]]:
    """The events of an answer, which never splits a revision, revision by revision."""
    found: list[tuple[int, list[Event]]] = []
    for event in events:
        kv = event.kv
        if not found or found[-1][0] != kv.mod_revision:
            found.append((kv.mod_revision, []))
        found[-1][1].append(Event(kv.key, None if event.type == rpc.Event.DELETE else _stored(kv)))
    return found
