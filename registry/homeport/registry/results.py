"""What a handler may return in place of its result, where whoever carries requests can do better than to await it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from homeport.client.core import wire
from homeport.registry.core.limits import TXN_OPS_MAX
from homeport.registry.core.txn import Txn, TxnResult

A = TypeVar("A")


class Encoded:
    """A result that is encoded already, and decoded only for a caller in this process."""

    __slots__ = ("data", "kind")

    def __init__(self, kind: type[Any], data: bytes) -> None:
        self.kind = kind
        self.data = data

    def decoded(self) -> Any:
        return wire.decode(self.kind, self.data)


class Commit(Generic[A]):
    """A transaction to commit, and what its outcome says to whoever asked: for handlers that need nothing else."""

    __slots__ = ("ops_max", "shape", "txn")

    def __init__(self, txn: Txn, shape: Callable[[TxnResult], A], ops_max: int = TXN_OPS_MAX) -> None:
        self.txn = txn
        self.shape = shape  # may raise a HomeportError, which is then the answer
        self.ops_max = ops_max
