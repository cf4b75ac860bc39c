"""What can be said of where a service's requests go: the document of one service, as frozen values.

    {"routes": [
        {"name": "beta", "match": {"headers": [{"name": "x-beta", "present": true}]},
         "to": [{"subset": {"tag": "beta"}}]},
        {"name": "canary",
         "to": [{"subset": {"version": "1"}, "weight": 95}, {"subset": {"version": "2"}, "weight": 5}]}
    ]}

The first route that matches decides; a request that none matches goes to any instance of the service. A document is
taken whole or refused whole, with a sentence that says why. `router` is what becomes of it.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

from homeport.client.core.balancing import Subset
from homeport.client.core.balancing.settings import check_range
from homeport.client.core.errors import InvalidArgument
from homeport.client.core.model import FrozenDict, validate_name
from homeport.client.core.patterns import Pattern
from homeport.client.core.wire import UNREADABLE
from homeport.sidecar.core import headers
from homeport.sidecar.core.settings import ServiceSettings, check_statuses

DOCUMENT_BYTES_MAX: Final = 64 * 1024  # of one service: every sidecar reads it, and parses it between two requests
ROUTES_MAX: Final = 128  # of one service; they are tried one after the other, 0.2 us each
DESTINATIONS_MAX: Final = 32  # of one route: a canary needs two
CONDITIONS_MAX: Final = 16  # headers that one route looks at, and headers that it edits
DELAY_S_MAX: Final = 300.0  # an injected delay holds a connection; past it the client has gone in any case
_HOUR_S: Final = 3600.0
_RATE_MAX: Final = 1e6  # a second: more than a sidecar carries
_WEIGHT_MAX: Final = 1e6

_PATH: Final = re.compile(r"/[A-Za-z0-9._~:/@!$&'()*+,;=%-]{0,1023}")
_REPLACEMENT: Final = re.compile(r"(?:[A-Za-z0-9._~:/@!$&'()*+,;=%-]|\\[0-9]){1,1024}")
_HOST: Final = re.compile(r"[A-Za-z0-9_~.-]{1,255}(?::[0-9]{1,5})?")
_METHOD: Final = re.compile(r"[A-Z]{1,20}")
REDIRECTS: Final = (301, 302, 303, 307, 308)


def _check_path(field: str, path: str) -> None:
    if path and _PATH.fullmatch(path) is None:
        raise InvalidArgument(f"{field} is {path[:100]!r}; allowed: a path that begins with / and has no query")


def _check_header(field: str, name: str) -> None:
    if not headers.passes(name):
        raise InvalidArgument(
            f"{field} cannot name {name[:128]!r}; allowed: headers that pass the proxy as they came, not those that "
            "frame, route or forward a message"
        )


def _check_count(field: str, entries: Any, most: int) -> None:
    if len(entries) > most:
        raise InvalidArgument(f"{field} has {len(entries)} entries; allowed: {most}")


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all parts of a document are: immutable, and without fields that nobody reads."""


class HeaderMatch(_Part, frozen=True):
    """A header that a request must have, or with `invert` must not have."""

    name: str
    exact: str | None = None
    prefix: str | None = None
    regex: str | None = None  # RE2, of the whole value
    present: bool = False  # whatever it says
    invert: bool = False

    def __post_init__(self) -> None:
        _check_header("match.headers", self.name)
        if [self.exact, self.prefix, self.regex].count(None) + (not self.present) != 3:
            raise InvalidArgument(f"header {self.name!r} must be matched by one of exact, prefix, regex, present")
        if self.regex is not None:
            Pattern(self.regex)


class Match(_Part, frozen=True):
    """Which requests a route is for: those that meet all that is said here. A path is compared as it came."""

    path: str = ""  # exactly
    prefix: str = ""  # `/a` is the prefix of `/a` and `/a/b`, not of `/ab`; `/a/` only of what goes on after it
    regex: str = ""  # RE2, of the whole path without the query
    methods: tuple[str, ...] = ()
    headers: tuple[HeaderMatch, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.path) + bool(self.prefix) + bool(self.regex) > 1:
            raise InvalidArgument("match has more than one of path, prefix, regex")
        for field in ("path", "prefix"):
            _check_path(f"match.{field}", getattr(self, field))
        if self.regex:
            Pattern(self.regex)
        for method in self.methods:
            if _METHOD.fullmatch(method) is None:
                raise InvalidArgument(f"match.methods has {method[:40]!r}; allowed: a method in capitals, such as GET")
        _check_count("match.headers", self.headers, CONDITIONS_MAX)


class Destination(_Part, frozen=True):
    """One of several places that a route leads to, and its share among them."""

    service: str = ""  # empty: the one that was asked for
    subset: Subset | None = None  # None: all of its instances
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.service:
            validate_name("to.service", self.service)
        check_range("to.weight", self.weight, 0.0, _WEIGHT_MAX)


class Mirror(_Part, frozen=True):
    """Where copies of the requests go; what is answered to them is thrown away."""

    service: str = ""
    subset: Subset | None = None
    percent: float = 100.0

    def __post_init__(self) -> None:
        if not self.service and self.subset is None:
            raise InvalidArgument("mirror must name another service or a subset")
        if self.service:
            validate_name("mirror.service", self.service)
        check_range("mirror.percent", self.percent, 0.0, 100.0)


class Fault(_Part, frozen=True):
    """What is made to go wrong, for some of the requests each, to see what callers do then."""

    delay_s: float = 0.0
    delay_percent: float = 100.0
    abort_status: int = 0
    abort_percent: float = 100.0

    def __post_init__(self) -> None:
        if not self.delay_s and not self.abort_status:
            raise InvalidArgument("fault must have a delay_s or an abort_status")
        check_range("fault.delay_s", self.delay_s, 0.0, DELAY_S_MAX)
        if self.abort_status:
            check_range("fault.abort_status", self.abort_status, 400, 599)
        check_range("fault.delay_percent", self.delay_percent, 0.0, 100.0)
        check_range("fault.abort_percent", self.abort_percent, 0.0, 100.0)


class Rewrite(_Part, frozen=True):
    """What the request asks for when it goes on. The query stays."""

    path: str = ""  # instead of the whole path,
    prefix: str = ""  # or of the prefix that was matched,
    regex: str = ""  # or of whatever this matches, by
    replacement: str = ""  # this, in which `\1` to `\9` are its groups
    host: str = ""

    def __post_init__(self) -> None:
        if bool(self.path) + bool(self.prefix) + bool(self.regex) > 1:
            raise InvalidArgument("rewrite has more than one of path, prefix, regex")
        if not (self.path or self.prefix or self.regex or self.host):
            raise InvalidArgument("rewrite must have one of path, prefix, regex, host")
        for field in ("path", "prefix"):
            _check_path(f"rewrite.{field}", getattr(self, field))
        if self.host and _HOST.fullmatch(self.host) is None:
            raise InvalidArgument(f"rewrite.host is {self.host[:100]!r}; allowed: a name, with or without a port")
        if bool(self.regex) != bool(self.replacement):
            raise InvalidArgument("rewrite.regex and rewrite.replacement belong together")
        if self.regex:
            groups = Pattern(self.regex).groups_count
            if _REPLACEMENT.fullmatch(self.replacement) is None:
                raise InvalidArgument("rewrite.replacement has a character that no path has; groups are \\1 to \\9")
            if any(int(number) > groups for number in re.findall(r"\\([0-9])", self.replacement)):
                raise InvalidArgument(
                    f"rewrite.replacement names a group that the regex does not have; it has {groups}"
                )


class HeaderEdits(_Part, frozen=True):
    """Headers to take away, to write instead of whatever was there, and to add to it; in this order."""

    remove: tuple[str, ...] = ()
    set: dict[str, str] = FrozenDict()
    add: dict[str, str] = FrozenDict()

    def __post_init__(self) -> None:
        for field in ("set", "add"):
            msgspec.structs.force_setattr(self, field, FrozenDict(getattr(self, field)))
            _check_count(f"headers.{field}", getattr(self, field), CONDITIONS_MAX)
            for value in getattr(self, field).values():
                if not headers.is_value(value):
                    raise InvalidArgument(
                        f"a header cannot be {value[:100]!r}; allowed: 1 to 1024 visible ASCII characters"
                    )
        _check_count("headers.remove", self.remove, CONDITIONS_MAX)
        for name in (*self.remove, *self.set, *self.add):
            _check_header("headers", name)


class Redirect(_Part, frozen=True):
    """Where the client is sent instead. The query goes along; what is not said here stays as it was asked for."""

    status: int = 302
    scheme: Literal["", "http", "https"] = ""
    host: str = ""
    path: str = ""
    prefix: str = ""  # instead of the prefix that was matched

    def __post_init__(self) -> None:
        if self.status not in REDIRECTS:
            raise InvalidArgument(f"redirect.status is {self.status}; allowed: {', '.join(map(str, REDIRECTS))}")
        if not (self.scheme or self.host or self.path or self.prefix):
            raise InvalidArgument("redirect must have one of scheme, host, path, prefix")
        if self.path and self.prefix:
            raise InvalidArgument("redirect has both path and prefix")
        for field in ("path", "prefix"):
            _check_path(f"redirect.{field}", getattr(self, field))
        if self.host and _HOST.fullmatch(self.host) is None:
            raise InvalidArgument(f"redirect.host is {self.host[:100]!r}; allowed: a name, with or without a port")


class RateLimit(_Part, frozen=True):
    """How many requests a second one sidecar lets through, whatever other sidecars do."""

    per_s: float
    burst: float = 0.0  # after a pause; 0: as many as in a second, at least one

    def __post_init__(self) -> None:
        check_range("rate_limit.per_s", self.per_s, 0.001, _RATE_MAX)
        if self.burst:
            check_range("rate_limit.burst", self.burst, 1.0, _RATE_MAX)


class RouteRetries(_Part, frozen=True):
    """What of the service's retries is different here; its budget holds for all of its routes."""

    retries_max: int = 2  # 0: none
    statuses: tuple[int, ...] = (502, 503, 504)
    retry_after_s_max: float = 0.0  # see the service's

    def __post_init__(self) -> None:
        check_range("retries.retries_max", self.retries_max, 0, 10)
        check_range("retries.retry_after_s_max", self.retry_after_s_max, 0.0, 60.0)
        check_statuses("retries.statuses", self.statuses)


class Route(_Part, frozen=True):
    """What happens to the requests that match.

    In this order: `rate_limit`, `redirect`, `fault`, then they go to one of `to`, rewritten and edited, and copies of
    them to `mirror`.
    """

    name: str = ""  # for operators
    match: Match = Match()
    to: tuple[Destination, ...] = ()  # none: the service, all of it
    rate_limit: RateLimit | None = None
    redirect: Redirect | None = None
    fault: Fault | None = None
    mirror: Mirror | None = None
    rewrite: Rewrite | None = None
    request_headers: HeaderEdits | None = None
    response_headers: HeaderEdits | None = None
    timeout_s: float = 0.0  # from the request's head to the answer's last byte; 0: the sidecar's own `total_s`
    per_try_s: float = 0.0  # from the end of the request to the answer's head; 0: the service's
    retries: RouteRetries | None = None  # None: the service's

    def __post_init__(self) -> None:
        if len(self.name.encode()) > 128 or not self.name.isprintable():
            raise InvalidArgument(f"name is {self.name[:40]!r}; allowed: at most 128 bytes, all printable")
        _check_count("to", self.to, DESTINATIONS_MAX)
        if self.to and not any(destination.weight for destination in self.to):
            raise InvalidArgument("to has no destination with a weight over 0")
        check_range("timeout_s", self.timeout_s, 0.0, _HOUR_S)
        check_range("per_try_s", self.per_try_s, 0.0, _HOUR_S)
        replaces = [each.prefix for each in (self.rewrite, self.redirect) if each is not None]
        if any(replaces) and not self.match.prefix:
            raise InvalidArgument("a prefix can only be replaced where match.prefix is one")
        if self.redirect is not None and (self.to or self.mirror or self.rewrite or self.fault):
            raise InvalidArgument("a redirect goes nowhere: to, mirror, rewrite and fault do not belong to it")


class Routing(_Part, frozen=True):
    """The document of one service."""

    settings: ServiceSettings | None = None  # instead of those that the sidecar has for the service; but for TLS
    routes: tuple[Route, ...] = ()

    def __post_init__(self) -> None:
        _check_count("routes", self.routes, ROUTES_MAX)
        names = [route.name for route in self.routes if route.name]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise InvalidArgument(f"two routes are called {min(twice)!r}")
        if self.settings is not None and self.settings.tls is not None:
            raise InvalidArgument("settings.tls names files of one machine: give it to that machine's sidecar")


_decoder: Final = msgspec.json.Decoder(Routing)


def parsed(text: bytes) -> Routing:
    """Read a document in JSON.

    Raises:
        InvalidArgument: it is none; the message says what is wrong, and where if that is known.
    """
    if len(text) > DOCUMENT_BYTES_MAX:
        raise InvalidArgument(f"the document is too long; allowed: {DOCUMENT_BYTES_MAX} bytes")
    try:
        return _decoder.decode(text)
    except UNREADABLE as error:
        raise InvalidArgument(str(error)) from None


def converted(table: Any) -> Routing:
    """The same from plain values, as a TOML file has them.

    Raises:
        InvalidArgument: as for `parsed`.
    """
    try:
        text = msgspec.json.encode(table)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(str(error)) from None
    return parsed(text)


def encoded(routing: Routing) -> bytes:
    """The document in JSON, for people to read."""
    return msgspec.json.format(msgspec.json.encode(routing), indent=2)
