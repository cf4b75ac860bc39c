"""What may be tried again, and why not.

The rule behind the table: a request may be repeated when nobody can tell the difference. Either it was never
delivered (nothing was connected, or the other end says so), or its method is idempotent and the client has seen
nothing of an answer. All of it only while the body is still held and tries are left, and never on the host just tried.

| what happened                                    | idempotent | any other method |
|--------------------------------------------------|------------|------------------|
| REFUSED: no connection came to be                | again      | again            |
| UNDELIVERED: the far inbound could not hand it on | again      | again            |
| STALE: a reused idle connection broke, no byte   | again      | no               |
| RESET: a fresh connection broke, no byte         | again      | no               |
| STATUS: 502, 503 or 504                          | again      | no               |
| TIMEOUT: no first byte in time                   | again      | no               |
| GONE: the endpoint turned critical while waiting | again      | no               |

STALE is the connection's fault, not the host's: if no other host is there, the same host gets a fresh connection.
RESET, STATUS and TIMEOUT may mean an overload, which retries would make worse, so they also need the budget's consent;
the others are limited by their number alone. An inbound has one host only, and leaves every other retry to the
outbound that sees them all.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})  # RFC 9110 9.2.2


class Failure(Enum):
    """How a try ended without an answer to pass on; `flag` is what the client is told when it was the last."""

    REFUSED = ("refused", "UF")
    UNDELIVERED = ("undelivered", "UF")
    STALE = ("stale", "UC")
    RESET = ("reset", "UC")
    STATUS = ("status", "")  # the upstream's own answer is passed on
    TIMEOUT = ("timeout", "UT")
    GONE = ("gone", "UC")

    @property
    def flag(self) -> str:
        return self.value[1]

    @property
    def charged(self) -> bool:
        """Whether a retry counts against the budget: the host had the request, and may be overloaded."""
        return self in (Failure.RESET, Failure.STATUS, Failure.TIMEOUT)

    @property
    def delivered(self) -> bool:
        """Whether the request may have been worked on."""
        return self not in (Failure.REFUSED, Failure.UNDELIVERED)


def may_retry(failure: Failure, method: bytes, *, retries: int, retries_max: int, body_held: bool) -> bool:
    """Whether a request that has had `retries` retries, and whose client has seen no answer, gets another."""
    if not body_held or retries >= retries_max:
        return False
    return not failure.delivered or method in IDEMPOTENT
