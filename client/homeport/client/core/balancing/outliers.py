"""Outlier ejection: an endpoint whose answers speak against it is left alone for a while.

Two kinds of evidence: failures in a row, seen at once, and a success rate far below that of the others, compared once
per interval. An ejection lasts longer each time, and every interval that an endpoint is not ejected takes one off the
count. When a probe of the registry finds it passing again, it is readmitted at once.

Evidence can be wrong, and losing hosts is worse than a few errors: at most `max(1, floor(share x n))` of n endpoints
are ejected at a time, nobody is let in so that another can be ejected, and the last one that could serve never is.
Source: Envoy's outlier detection.
"""

from __future__ import annotations

from collections.abc import Collection
from math import floor, sqrt
from typing import Protocol, TypeVar

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing.settings import Outliers

_GATEWAY = frozenset({502, 503, 504})


class Host(Protocol):
    """What is counted of an endpoint. The data path adds to `answers`; the rest moves only when something fails."""

    answers: int  # tries that ended, since the last interval
    errors: int  # of which: 5xx or no answer
    row_5xx: int
    row_gateway: int
    row_connect: int
    ejected: bool
    ejected_until_s: float
    ejections: int

    @property
    def available(self) -> bool: ...


H = TypeVar("H", bound=Host)


class OutlierDetector:
    """Decides for the endpoints of one service; the endpoints hold the counts."""

    __slots__ = ("_next_interval_s", "_settings", "ejections", "spared")

    def __init__(self, settings: Outliers) -> None:
        self._settings = settings
        self._next_interval_s = 0.0  # the first sweep begins the first interval
        self.ejections: int = 0
        self.spared: int = 0  # ejections that were due but would have left too few

    def failed(
        self,
        host: H,
        status: int,
        hosts: Collection[H],
        now: float,
        rng: Rng,
        *,
        refused: bool = False,
        answered: bool = False,
    ) -> bool:
        """Count a failed try; True: the host was ejected.

        Args:
            status: The answer's, 0 for none.
            refused: No connection came to be.
            answered: There was one, and the host's `answers` hold it: its body was cut off.
        """
        host.errors += 1
        host.row_5xx += 1
        host.row_gateway = host.row_gateway + 1 if not status or status in _GATEWAY else 0
        host.row_connect = host.row_connect + 1 if refused else 0
        if not status and not answered:
            host.answers += 1
        settings = self._settings
        if (
            0 < settings.consecutive_5xx <= host.row_5xx
            or 0 < settings.consecutive_gateway <= host.row_gateway
            or 0 < settings.consecutive_connect <= host.row_connect
        ):
            return self._eject(host, hosts, now, rng)
        return False

    def sweep(self, hosts: Collection[H], now: float, rng: Rng) -> bool:
        """At the end of an interval, forgive and compare success rates; True: somebody was ejected."""
        if now < self._next_interval_s:
            return False
        self._next_interval_s = now + self._settings.interval_s
        for host in hosts:
            if not host.ejected and host.ejections:
                host.ejections -= 1
        changed = False
        for host in self._slackers(hosts):
            changed = self._eject(host, hosts, now, rng) or changed
        for host in hosts:
            host.answers = host.errors = 0
        return changed

    def _slackers(self, hosts: Collection[H]) -> list[H]:
        """Whose success rate is an outlier's, the worst first."""
        settings = self._settings
        rated = [
            ((host.answers - host.errors) / host.answers, host)
            for host in hosts
            if not host.ejected and host.answers >= settings.volume_min
        ]
        if not settings.stdev_factor or len(rated) < settings.hosts_min:
            return []
        mean = sum(rate for rate, _ in rated) / len(rated)
        deviation = sqrt(sum((rate - mean) ** 2 for rate, _ in rated) / len(rated))
        threshold = mean - settings.stdev_factor * deviation
        low = [(rate, host) for rate, host in rated if rate < threshold]
        return [host for _, host in sorted(low, key=lambda each: each[0])]

    def _eject(self, host: H, hosts: Collection[H], now: float, rng: Rng) -> bool:
        if host.ejected:
            return False
        settings = self._settings
        if self._leaves_too_few(host, hosts):
            return False
        host.ejections += 1
        host.ejected = True
        lasts_s = min(settings.ejection_s * host.ejections, settings.ejection_s_max)
        host.ejected_until_s = now + lasts_s + rng.uniform(0.0, settings.jitter_s)
        self.ejections += 1
        return True

    def agree(self, host: H, hosts: Collection[H], until_s: float) -> bool:
        """Another process of this sidecar has ejected a host: so do we, unless too few were left; True: done."""
        if host.ejected or self._leaves_too_few(host, hosts):
            return False
        host.ejections += 1
        host.ejected = True
        host.ejected_until_s = until_s
        return True

    def _leaves_too_few(self, host: H, hosts: Collection[H]) -> bool:
        out = sum(other.ejected for other in hosts)
        left = sum(other.available and not other.ejected for other in hosts if other is not host)
        too_few = not left or out >= max(1, floor(self._settings.share_max * len(hosts) + 1e-9))  # 29 of 0.29 x 100
        self.spared += too_few
        return too_few


def readmit(host: Host) -> None:
    """Let an endpoint take traffic again, with a clean slate but for the count of its ejections."""
    host.ejected = False
    host.answers = host.errors = host.row_5xx = host.row_gateway = host.row_connect = 0
