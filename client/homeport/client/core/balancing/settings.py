"""How one service is balanced: frozen values that say what is allowed when they are wrong."""

from __future__ import annotations

from math import isfinite
from typing import Final, Literal

import msgspec

from homeport.client.core.errors import InvalidArgument
from homeport.client.core.model import FrozenDict, Instance

PolicyName = Literal["least-request", "peak-ewma", "round-robin", "maglev"]

_DAY_S: Final = 86_400.0
_MANY: Final = 1_000_000  # beyond every limit of open files
SLOW_START_S_MAX: Final = 900.0  # a quarter of an hour warms any cache; longer is another weight


def check_range(field: str, value: float, least: float, most: float) -> None:
    """Raise `InvalidArgument` unless `value` is from `least` to `most`."""
    if not (isfinite(value) and least <= value <= most):
        raise InvalidArgument(f"{field} is {value}; allowed: {least:g} to {most:g}", field=field)


class Subset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which instances take traffic: those that have all that is named here."""

    tag: str = ""
    version: str = ""
    zone: str = ""
    meta: dict[str, str] = FrozenDict()
    fallback: Literal["any", "none"] = "any"  # when none of these is available: everyone, or nobody

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "meta", FrozenDict(self.meta))
        if not (self.tag or self.version or self.zone or self.meta):
            raise InvalidArgument("a subset must name a tag, a version, a zone or some meta", field="subset")

    def matches(self, instance: Instance) -> bool:
        """Whether this instance belongs to the subset."""
        return (
            (not self.tag or self.tag in instance.tags)
            and (not self.version or self.version == instance.version)
            and (not self.zone or self.zone == instance.zone)
            and all(instance.meta.get(name) == value for name, value in self.meta.items())
        )


class HashOn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the key of a hashing policy comes from; a request without one goes anywhere."""

    source: bool = False  # the client's address
    header: str = ""
    cookie: str = ""

    def __post_init__(self) -> None:
        if bool(self.source) + bool(self.header) + bool(self.cookie) != 1:
            raise InvalidArgument("hash_on must name one of source, header, cookie", field="hash_on")


class Balancing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How endpoints are chosen. The defaults suit most services: two choices, nobody preferred.

    Attributes:
        zone: prefer instances of this zone, and spill over to the others as it loses capacity; empty: no preference.
        slow_start_s: how long a newcomer's weight takes to grow from a tenth to all of it; 0: at once.
        panic: under this share of healthy endpoints, balance over all that are meant to serve; 0: never.
        subset: only these instances.
        hash_on: the key, for `maglev` and only for it.
    """

    policy: PolicyName = "least-request"
    zone: str = ""
    slow_start_s: float = 0.0
    panic: float = 0.5
    subset: Subset | None = None
    hash_on: HashOn | None = None

    def __post_init__(self) -> None:
        check_range("slow_start_s", self.slow_start_s, 0.0, SLOW_START_S_MAX)
        check_range("panic", self.panic, 0.0, 1.0)
        if (self.policy == "maglev") != (self.hash_on is not None):
            raise InvalidArgument("hash_on belongs to the policy maglev, which needs it", field="hash_on")
        if self.policy == "maglev" and self.slow_start_s:
            raise InvalidArgument(
                "slow_start_s must be 0 with maglev: growing weights would move keys all the time", field="slow_start_s"
            )


class Outliers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When answers speak against an endpoint so much that it is left alone. Source of the numbers: Envoy.

    Attributes:
        consecutive_5xx: 500 to 599, connect failures and timeouts in a row; 0: not counted.
        consecutive_gateway: 502 to 504, connect failures and timeouts in a row; 0: not counted.
        consecutive_connect: failed connects in a row; 0: not counted.
        stdev_factor: a success rate this many standard deviations below the mean is an outlier's; 0: not compared.
        volume_min: answers per interval from which a success rate means something.
        hosts_min: endpoints with that volume from which a mean and its deviation do.
        ejection_s, ejection_s_max: the first ejection, and the longest: the n-th lasts n times as long.
        jitter_s: added at random, so that not everyone comes back to a host at once.
        share_max: at most `max(1, floor(share_max x endpoints))` are ejected at a time.
    """

    consecutive_5xx: int = 5
    consecutive_gateway: int = 5
    consecutive_connect: int = 5
    interval_s: float = 10.0
    stdev_factor: float = 1.9
    volume_min: int = 100
    hosts_min: int = 5
    ejection_s: float = 30.0
    ejection_s_max: float = 300.0
    jitter_s: float = 3.0
    share_max: float = 0.1  # when more misbehave, it is rarely the hosts' fault, and ejecting them adds an overload

    def __post_init__(self) -> None:
        for field in ("consecutive_5xx", "consecutive_gateway", "consecutive_connect"):
            check_range(field, getattr(self, field), 0, 1000)
        check_range("interval_s", self.interval_s, 0.1, 3600.0)
        check_range("stdev_factor", self.stdev_factor, 0.0, 10.0)
        check_range("volume_min", self.volume_min, 1, _MANY)
        check_range("hosts_min", self.hosts_min, 2, _MANY)
        check_range("ejection_s", self.ejection_s, 0.1, _DAY_S)
        check_range("ejection_s_max", self.ejection_s_max, self.ejection_s, _DAY_S)
        check_range("jitter_s", self.jitter_s, 0.0, _DAY_S)
        check_range("share_max", self.share_max, 0.0, 1.0)
