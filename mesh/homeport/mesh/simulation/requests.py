"""Every request through the sidecars, from who asked to which instance got it, held to what a caller may rely on.

Applications write down each delivery, callers each answer. A body is a pattern of its request's number, so that one
byte too few, too many or from elsewhere shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from homeport.mesh.simulation import guarantees
from homeport.mesh.simulation.trace import Trace
from homeport.sidecar.core.limits import RETRIES_MAX

IDEMPOTENT: Final = ("GET", "PUT", "DELETE")
TRIES_MAX: Final = 2 * (RETRIES_MAX + 1)  # an outbound's, and each may meet a stale connection once
RECOVERY_S: Final = 25.0  # after a disturbance, until a party counts as well: silence is noticed after ten seconds
ACTED_S: Final = 1.0  # from the moment an instance is out until a follower that is well must have acted on it


def body_of(number: int, size: int) -> bytes:
    """The bytes that belong to a request or answer: different for every number, at every offset."""
    unit = b"%d." % number
    return (unit * (size // len(unit) + 1))[:size]


@dataclass
class Request:
    """One request of a caller; `size` of its body."""

    number: int
    method: str
    caller: str
    size: int
    sent: float
    deliveries: list[tuple[float, str]] = field(default_factory=list)


@dataclass
class Departure:
    """An instance that is out: since when nobody who is well may send to it.

    `followers`: who had said that it acted on that; they need no time to recover from anything before.
    """

    began: float
    out: float
    how: str
    followers: frozenset[str] = frozenset()


class Requests:
    """The requests of a run.

    Args:
        well: whether nothing has disturbed these parties, nor any registry, between two times.
    """

    def __init__(self, trace: Trace, now: Callable[[], float], well: Callable[[float, float, str, str], bool]) -> None:
        self._trace = trace
        self._now = now
        self._well = well
        self._requests: dict[int, Request] = {}
        self._out: dict[str, list[Departure]] = {}  # a few each: until it is there again
        self.answered = 0
        self.failed = 0

    def send(self, method: str, caller: str, size: int) -> Request:
        """A caller is about to ask."""
        number = len(self._requests) + 1
        request = self._requests[number] = Request(number, method, caller, size, self._now())
        return request

    def delivered(self, number: int, instance: str, method: str, body: bytes) -> None:
        """An application got a request that looks whole."""
        request = self._requests.get(number)
        if request is None or method != request.method or body != body_of(number, request.size):
            self._trace.broken(
                guarantees.WHOLE,
                f"{instance} got request {number} as {method} with {len(body)} bytes: nobody sent that",
            )
            return
        now = self._now()
        request.deliveries.append((now, instance))
        times = len(request.deliveries)
        if times > 1 and request.method not in IDEMPOTENT:
            self._trace.broken(guarantees.ONCE, f"{request.method} {number} was delivered to {request.deliveries}")
        if times > TRIES_MAX:
            self._trace.broken(guarantees.ONCE, f"{request.method} {number} was tried {times} times")
        for departure in self._out.get(instance, ()):
            self._expect_not_sent(request, instance, departure)

    def _expect_not_sent(self, request: Request, instance: str, departure: Departure) -> None:
        late_s = request.sent - departure.out
        recovered_s = 0.0 if request.caller in departure.followers else RECOVERY_S
        if late_s <= 0.0 or (departure.followers and recovered_s):
            return
        if self._well(departure.began - recovered_s, self._now(), request.caller, instance):
            self._trace.broken(
                guarantees.GONE,
                f"{request.caller} sent {request.method} {request.number} to {instance} {late_s:.3f} s after it was "
                f"{departure.how}",
            )

    def expect_body(self, number: int, what: str, body: bytes, size: int) -> None:
        """A body that somebody takes for whole is."""
        if body != body_of(number, size):
            self._trace.broken(
                guarantees.WHOLE, f"{what} of request {number} has {len(body)} bytes that look whole, of {size}"
            )

    def leaving(self, instance: str, began: float, out: float, how: str) -> None:
        """From `out` on nobody who was well since `began` sends it anything new."""
        self._out.setdefault(instance, []).append(Departure(began, out, how))

    def acknowledged(self, instance: str, out: float, followers: frozenset[str]) -> None:
        """These have said that they know of its drain: from now on they send it nothing new."""
        self._out.setdefault(instance, []).append(Departure(out, out, "acknowledged as draining", followers))

    def returned(self, instance: str) -> None:
        """It is there again."""
        self._out.pop(instance, None)
