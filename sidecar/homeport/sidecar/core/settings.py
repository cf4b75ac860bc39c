"""How one service is called: frozen values with defaults, each of which says what is allowed when it is wrong.

A feature that is None is off, and costs the data path no more than the question.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from homeport.client.core.balancing import Balancing, Outliers
from homeport.client.core.balancing.settings import check_range
from homeport.client.core.errors import InvalidArgument
from homeport.sidecar.core import limits
from homeport.sidecar.core.affinity import Affinity

_DAY_S: Final = 86_400.0
_MANY: Final = 1_000_000  # beyond every limit of open files


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many retries the traffic of the last `window_s` pays for. Source of the defaults: Finagle."""

    ratio: float = 0.2  # retries per request: an overload grows by a fifth at most
    reserve_per_s: float = 10.0  # for services with hardly any traffic, where a fifth is nothing
    window_s: float = 10.0  # what was saved earlier is forgotten, or a quiet night would pay for a storm

    def __post_init__(self) -> None:
        check_range("budget.ratio", self.ratio, 0.001, 10.0)
        check_range("budget.reserve_per_s", self.reserve_per_s, 0.0, 1e6)
        check_range("budget.window_s", self.window_s, 1.0, 3600.0)


class Retries(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be tried again, how often and for how long; see `retries` for what is safe to repeat at all."""

    retries_max: int = limits.RETRIES_MAX
    statuses: tuple[int, ...] = (502, 503, 504)  # what gateways say of hosts; a 500 is the application's own answer
    # The longest Retry-After that is waited for before the next try; an answer that asks for more is passed on. 0: none
    # is waited for, and the next host is asked at once.
    retry_after_s_max: float = 0.0
    budget: Budget | None = Budget()

    def __post_init__(self) -> None:
        check_range("retries_max", self.retries_max, 1, 10)
        check_range("retry_after_s_max", self.retry_after_s_max, 0.0, 60.0)
        check_statuses("statuses", self.statuses)


def check_statuses(field: str, statuses: tuple[int, ...]) -> None:
    """Which answers may be tried again: those that speak of a host's state, never of the request.

    Raises:
        InvalidArgument: another status is among them.
    """
    for status in statuses:
        if status != 429 and not 500 <= status <= 599:
            raise InvalidArgument(f"{field} has {status}; allowed: 429, and 500 to 599", field=field)


class Circuit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much one service may hold of this sidecar; past a limit the answer is 503 `UO`.

    At once, but for connections: while no more may be opened, requests wait for one, as pending ones.

    The limits protect the sidecar's other services, and the service from a crowd that waits in vain.
    """

    requests_max: int = 4096  # under way; half of all clients may hang on one slow service
    pending_max: int = 4096  # of which: connecting, or waiting until they may; after a restart that may be all of them
    connections_max: int = 8192  # open, idle ones included
    retries_max: int = 1024  # of which: retries; the budget limits them in time, this in number

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            check_range(field, getattr(self, field), 1, _MANY)


class UpstreamTls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the instances of a service are met over TLS."""

    ca: str | None = None  # a file of those whose certificates are believed; None: whom the system believes
    server_name: str = ""  # the name that must stand in the certificate; empty: the instance's address
    cert: str | None = None  # a file with our own certificate,
    key: str | None = None  # and one with its key; None: it stands in the same file
    verify: bool = True  # False believes any certificate, and so anybody in between

    def __post_init__(self) -> None:
        if self.key is not None and self.cert is None:
            raise InvalidArgument("tls.key needs its certificate: tls.cert")


class Adaptive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A limit of requests under way that follows how long answers take. Source of the defaults: Netflix's Gradient2."""

    requests_min: int = 20  # below it, the limit would be noise
    requests_max: int = 1024
    initial: int = 100
    tolerance: float = 1.5  # answers may take this many times as long as usual before the limit shrinks
    window_s: float = 1.0
    answers_min: int = 10  # in a window, for their average to mean something

    def __post_init__(self) -> None:
        check_range("adaptive.requests_max", self.requests_max, 1, _MANY)
        check_range("adaptive.requests_min", self.requests_min, 1, self.requests_max)
        check_range("adaptive.initial", self.initial, self.requests_min, self.requests_max)
        check_range("adaptive.tolerance", self.tolerance, 1.0, 10.0)
        check_range("adaptive.window_s", self.window_s, 0.1, 3600.0)
        check_range("adaptive.answers_min", self.answers_min, 1, _MANY)


class Idempotency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests that must not run twice bear a key, and so may be sent again; see `idempotency`.

    A request is sent again to the very instance that may have it, and only if its inbound remembers.
    """

    scope: Literal["instance", "service"] = "instance"

    def __post_init__(self) -> None:
        if self.scope == "service":
            raise InvalidArgument(
                "idempotency.scope cannot be 'service': while nobody can tell whether one instance has run a request, "
                "no other may; allowed: 'instance'",
                field="idempotency.scope",
            )


class Hedging(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a second endpoint is asked beside one that has not answered; a retry that does not wait for a failure."""

    # After a request was sent: about what 95 of 100 answers take, or everything is asked twice. The default is what
    # people begin to notice.
    delay_s: float = 0.1

    def __post_init__(self) -> None:
        check_range("hedging.delay_s", self.delay_s, 0.001, 60.0)


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be said of how one service is called."""

    balancing: Balancing = Balancing()
    per_try_s: float = 0.0  # from the end of the request to the answer's head; 0: the sidecar's own `first_byte_s`
    retries: Retries | None = Retries()
    hedging: Hedging | None = None
    outliers: Outliers | None = Outliers()
    circuit: Circuit | None = Circuit()
    adaptive: Adaptive | None = None  # moves the circuit's `requests_max`
    tls: UpstreamTls | None = None  # None: only to instances whose meta says `tls = "true"`, as UpstreamTls() would
    idempotency: Idempotency | None = None  # give POST and PATCH a key, and retry them where it is remembered

    def __post_init__(self) -> None:
        if self.adaptive is not None and self.circuit is None:
            raise InvalidArgument("adaptive moves a limit of the circuit, which must not be off", field="adaptive")
        if self.hedging is not None and self.retries is None:
            raise InvalidArgument("a hedge is a retry, and retries must not be off", field="hedging")
        check_range("per_try_s", self.per_try_s, 0.0, _DAY_S)
        if self.balancing.hash_on is not None:
            Affinity(self.balancing.hash_on)  # refuses what no request could have


# What may be turned off or on by a word, since TOML has no null, and an empty table looks like a mistake.
_SWITCHES: Final = frozenset({"retries", "budget", "hedging", "outliers", "circuit", "adaptive", "tls", "idempotency"})


def settings_of(table: Any) -> ServiceSettings:
    """Read settings from plain values, as TOML and JSON have them.

    A feature may be `false` (off) or `true` (on, with its defaults); dashes in names are underscores.

    Raises:
        InvalidArgument: they are none; the message says what is wrong, and where.
    """
    try:
        return msgspec.convert(_switched(table), ServiceSettings)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(str(error)) from None


def _switched(table: Any) -> Any:
    if not isinstance(table, dict):
        return table
    found: dict[Any, Any] = {}
    for name, value in table.items():
        field = name.replace("-", "_") if isinstance(name, str) else name
        if field in found:
            raise InvalidArgument(f"{field} is given twice")
        if field in _SWITCHES and isinstance(value, bool):
            value = {} if value else None
        found[field] = value if field == "meta" else _switched(value)  # the names in a meta are the user's
    return found


DEFAULT: Final = ServiceSettings()
UNLIMITED: Final = Circuit(requests_max=_MANY, pending_max=_MANY, connections_max=_MANY, retries_max=_MANY)
PLAIN: Final = ServiceSettings(retries=None, outliers=None, circuit=None)  # an inbound has one host, and no choice


def divided(settings: ServiceSettings, share: int) -> ServiceSettings:
    """What each of `share` processes may do, so that all of them together do what `settings` allow."""
    retries, circuit = settings.retries, settings.circuit
    if retries is not None and retries.budget is not None:
        budget = msgspec.structs.replace(retries.budget, reserve_per_s=retries.budget.reserve_per_s / share)
        retries = msgspec.structs.replace(retries, budget=budget)
    if circuit is not None:
        parts = {name: max(1, getattr(circuit, name) // share) for name in circuit.__struct_fields__}
        circuit = msgspec.structs.replace(circuit, **parts)
    adaptive = settings.adaptive
    if adaptive is not None:
        bounds = {
            name: max(1, getattr(adaptive, name) // share) for name in ("requests_min", "requests_max", "initial")
        }
        adaptive = msgspec.structs.replace(adaptive, **bounds)
    return msgspec.structs.replace(settings, retries=retries, circuit=circuit, adaptive=adaptive)
