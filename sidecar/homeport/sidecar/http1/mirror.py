"""A copy of a request, sent for what happens at the other end: its answer is thrown away, and nobody waits for it.

Strategy: an ordinary exchange whose client is nobody. It is tried once, has its own deadlines, and is counted where it
goes like any other request, so that circuit limits, outlier detection and pools hold for copies too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from homeport.sidecar.core.cluster import View
from homeport.sidecar.core.limits import MIRROR_S_MAX
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.http1.downstream import Downstream
from homeport.sidecar.http1.exchange import Exchange
from homeport.sidecar.http1.upstream import Cluster, Endpoint, Upstream

if TYPE_CHECKING:
    from homeport.sidecar.http1.listener import Listener

_NEVER: Final = float("inf")


class _Nowhere(asyncio.Transport):
    """Where answers to copies are written."""

    def is_closing(self) -> bool:
        return True


class Nobody(Downstream):
    """The client of an exchange that has none: takes nothing in, and does not count as a connection.

    Args:
        others: Where it stands until its exchange has ended.
    """

    __slots__ = ("_others",)

    def __init__(self, listener: Listener, others: dict[Nobody, None]) -> None:
        super().__init__(listener)
        self._others = others
        others[self] = None
        self.transport = _Nowhere()
        self.lost = True

    def send(self, data: bytes) -> None:
        """Throw it away."""

    def truncate(self, *, delimited: bool) -> None:
        """There is nothing to cut short."""

    def finished(self, keep: bool, now: float) -> None:
        self.exchange = None
        self.deadline_s = _NEVER
        self._others.pop(self, None)


class MirrorExchange(Exchange):
    """One copy of `original`, with the head and the body that it has on the wire."""

    waits = False  # what is asked for in earnest comes first

    def __init__(self, original: Exchange, nobody: Nobody, cluster: Cluster, wire: bytes, body: bytes) -> None:
        super().__init__(nobody, original.request)
        self.cluster = cluster
        self._wire = wire
        self._held = [body] if body else []
        self._held_bytes = len(body)
        self.request_done = True
        self.ends_s = self.listener.now() + MIRROR_S_MAX
        nobody.exchange = self

    def start(self, view: View[Upstream] | None) -> None:
        """Send it, as soon as it is known where to."""
        assert self.cluster is not None
        self._view = view
        if self.cluster.known:
            self.try_first()
        else:
            self.downstream.deadline_s = self.listener.now() + self.listener.timeouts.known_s
            self.listener.wait_known(self.cluster, self)

    def try_first(self) -> None:
        assert self.cluster is not None
        now = self.listener.now()
        endpoint = self.pick(now)
        if endpoint is None:
            self.client_lost()
        else:
            self._try(endpoint, now, fresh=False)

    def _refuse(self, refusal: Refusal, *, undelivered: bool = False) -> None:
        self.client_lost()

    @property
    def retries_max(self) -> int:
        return 0

    def pick(self, now: float) -> Endpoint | None:
        assert self.cluster is not None
        return self.cluster.pick(self.listener.rng, self._tried, now, self._key, self._view)
