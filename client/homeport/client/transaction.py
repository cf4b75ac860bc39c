"""A transaction being built: conditions, operations, and what each of them answered once it was committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self, TypeVar

from homeport.client.core.errors import InvalidArgument, LimitExceeded
from homeport.client.core.limits import CALL_S
from homeport.client.core.messages import KvTxn
from homeport.client.core.model import KeyValue
from homeport.client.core.txn import (
    Branched,
    Compare,
    Comparison,
    Delete,
    Deleted,
    Get,
    Got,
    Nested,
    Op,
    Put,
    Response,
    SortBy,
    Target,
    Written,
    prefix_end,
)
from homeport.client.leases import Lease
from homeport.client.names import key_bytes, lease_id

if TYPE_CHECKING:
    from homeport.client.client import Client

A = TypeVar("A", bound="TxnAnswer")

_ALL: Final = 1 << 63


class TxnAnswer:
    """What one operation answers: known when the transaction was committed, and only if the operation ran.

    Attributes:
        ran: whether it did.
    """

    def __init__(self) -> None:
        self._response: Response | None = None

    @property
    def ran(self) -> bool:
        return self._response is not None

    def settle(self, response: Response) -> None:
        """Take the answer in; for the transaction."""
        self._response = response

    def _expect(self) -> Response:
        if self._response is None:
            raise InvalidArgument("this operation has no answer: its transaction was not committed, or did not run it")
        return self._response


class TxnRead(TxnAnswer):
    """What a read found."""

    @property
    def entries(self) -> tuple[KeyValue, ...]:
        """The entries, in the order asked for.

        Raises:
            LimitExceeded: the answer had no room for all of them.
        """
        found = self._got()
        if len(found.entries) < min(found.count, self._most):
            raise LimitExceeded(
                f"the answer had room for {len(found.entries)} of {found.count} entries; list them in pages",
                limit="page_bytes",
                allowed=len(found.entries),
            )
        return found.entries

    @property
    def entry(self) -> KeyValue | None:
        """The entry of a single key (the first of several), None if there is none."""
        entries = self.entries
        return entries[0] if entries else None

    @property
    def count(self) -> int:
        """How many there are, whatever the limit."""
        return self._got().count

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most  # entries that were asked for, if there are so many

    def _got(self) -> Got:
        found = self._expect()
        assert isinstance(found, Got)
        return found


class TxnChange(TxnAnswer):
    """What a put or a delete changed."""

    @property
    def count(self) -> int:
        """How many keys were written or deleted."""
        found = self._expect()
        return found.count if isinstance(found, Deleted) else 1

    @property
    def prevs(self) -> tuple[KeyValue, ...]:
        """What was there before, if that was asked for by `with_prev`.

        Raises:
            LimitExceeded: the answer had no room for all of it.
        """
        found = self._expect()
        assert isinstance(found, Written | Deleted)
        if found.more:
            raise LimitExceeded("the answer had no room for all that was there before", limit="page_bytes", allowed=0)
        if isinstance(found, Deleted):
            return found.prevs
        return () if found.prev is None else (found.prev,)

    @property
    def prev(self) -> KeyValue | None:
        """The first of `prevs`, None if there is none."""
        prevs = self.prevs
        return prevs[0] if prevs else None


class TxnBranch:
    """Operations, in the order in which they run."""

    def __init__(self) -> None:
        self._asked: list[tuple[Op | TxnCondition, TxnAnswer]] = []

    def put(self, key: str | bytes, value: bytes, *, lease: Lease | int = 0, with_prev: bool = False) -> TxnChange:
        """Write a key, on a lease if one is given."""
        return self._ask(Put(key_bytes(key), value, lease_id(lease), with_prev), TxnChange())

    def delete(self, key: str | bytes, *, prefix: bool = False, with_prev: bool = False) -> TxnChange:
        """Delete a key, or with `prefix` all that start with it."""
        start = key_bytes(key)
        return self._ask(Delete(start, prefix_end(start) if prefix else None, with_prev), TxnChange())

    def get(
        self,
        key: str | bytes,
        *,
        prefix: bool = False,
        limit: int = 0,
        sort_by: SortBy = "key",
        descending: bool = False,
        keys_only: bool = False,
    ) -> TxnRead:
        """Read a key, or with `prefix` all that start with it, as they are after the operations before."""
        start = key_bytes(key)
        end = prefix_end(start) if prefix else None
        get = Get(start, end, limit=limit, sort_by=sort_by, descending=descending, keys_only=keys_only)
        return self._ask(get, TxnRead(limit or _ALL))

    def count(self, key: str | bytes, *, prefix: bool = True) -> TxnRead:
        """Count the keys that start with this one; read `count` of the answer."""
        start = key_bytes(key)
        return self._ask(Get(start, prefix_end(start) if prefix else None, count_only=True), TxnRead(0))

    def nested(self) -> TxnCondition:
        """A transaction within this one, whose own conditions decide which of its branches runs."""
        inner = TxnCondition()
        self._asked.append((inner, inner))
        return inner

    def _ask(self, op: Op, answer: A) -> A:
        self._asked.append((op, answer))
        return answer

    def ops(self) -> tuple[Op, ...]:
        """The operations as they are sent."""
        return tuple([op.op() if isinstance(op, TxnCondition) else op for op, _ in self._asked])

    def take(self, responses: tuple[Response, ...]) -> None:
        """Give each operation its answer."""
        for (_, answer), response in zip(self._asked, responses, strict=True):
            answer.settle(response)


class TxnCondition(TxnBranch, TxnAnswer):
    """Conditions, what happens if all of them hold, and (`otherwise`) what happens if not.

    Attributes:
        otherwise: the operations that run if a condition does not hold.
    """

    def __init__(self) -> None:
        TxnBranch.__init__(self)
        TxnAnswer.__init__(self)
        self.otherwise: TxnBranch = TxnBranch()
        self._compare: list[Compare] = []

    def require(
        self,
        key: str | bytes,
        *,
        revision: int | None = None,
        created: int | None = None,
        version: int | None = None,
        value: bytes | None = None,
        lease: Lease | int | None = None,
        exists: bool | None = None,
    ) -> Self:
        """Demand something of a key: exactly what is given, all of it.

        Args:
            revision: of its last write; 0: it must be absent.
            created: the revision of its creation; 0: it must be absent.
            version: how often it was written since.
            exists: whether it must be there, or must not.

        Raises:
            InvalidArgument: nothing is demanded.
        """
        demanded: list[tuple[Target, Comparison, int | bytes | None]] = [
            ("mod", "=", revision),
            ("create", "=", created),
            ("version", "=", version),
            ("value", "=", value),
            ("lease", "=", None if lease is None else lease_id(lease)),
            ("version", "!=" if exists else "=", None if exists is None else 0),
        ]
        given = [(target, op, operand) for target, op, operand in demanded if operand is not None]
        if not given:
            raise InvalidArgument("nothing is demanded; give revision, created, version, value, lease or exists")
        self._compare += [Compare(key_bytes(key), target, op, operand) for target, op, operand in given]
        return self

    def compare(
        self, key: str | bytes, target: Target, op: Comparison, operand: int | bytes, *, prefix: bool = False
    ) -> Self:
        """Demand anything that a compare can say; with `prefix`, of every key that starts with this one."""
        start = key_bytes(key)
        self._compare.append(Compare(start, target, op, operand, prefix_end(start) if prefix else None))
        return self

    @property
    def succeeded(self) -> bool:
        """Whether its conditions held.

        Raises:
            InvalidArgument: it was not committed, or was within a branch that did not run.
        """
        found = self._expect()
        assert isinstance(found, Branched)
        return found.succeeded

    def op(self) -> Nested:
        """This transaction as it is sent within another."""
        return Nested(tuple(self._compare), self.ops(), self.otherwise.ops())

    def settle(self, response: Response) -> None:
        super().settle(response)
        assert isinstance(response, Branched)
        (self if response.succeeded else self.otherwise).take(response.responses)


class Transaction(TxnCondition):
    """A transaction on keys, made by `Kv.txn`: everything happens at one revision, or nothing.

        txn = client.kv.txn()
        txn.require("config", revision=seen.mod_revision)
        txn.put("config", b"new")
        txn.put("log/17", b"changed")
        now = txn.otherwise.get("config")
        if not (await txn.commit()).succeeded:
            print("meanwhile it became", now.entry)

    Attributes:
        revision: the store's after it; 0 before `commit`.
    """

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.revision: int = 0
        self._client = client

    async def commit(self, *, timeout_s: float = CALL_S) -> Self:
        """Carry it out, and return it with every answer.

        Raises:
            InvalidArgument: a key is empty or written twice, or an operand of the wrong type; nothing changed.
            LimitExceeded: it is too large (`Welcome.limits`); nothing changed.
            LeaseGone: a put names a lease that does not exist; nothing changed.
            ConnectionLost: it writes, and whether it happened is not known.
            Unavailable: no registry answered.
        """
        whole = self.op()
        done = await self._client.call(KvTxn(whole.compare, whole.then, whole.orelse), timeout_s=timeout_s)
        self.revision = done.revision
        self.settle(Branched(done.succeeded, done.responses))
        return self
