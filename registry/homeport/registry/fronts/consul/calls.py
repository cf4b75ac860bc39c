"""One request, decoded by its row of the table: what a view is given.

Parameters are read here and nowhere else, by the kind their row says. A flag is on when it is there (`?raw`), unless it
says `false` or `0`. What the table knows and this registry does not do is refused, never skipped; a parameter that
nobody knows is skipped, as Consul does.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Literal, Protocol
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from homeport.registry.core.filters import Predicate, compiled
from homeport.registry.fronts.consul import bodies
from homeport.registry.fronts.consul.access import Access, Caller
from homeport.registry.fronts.consul.agent import DATACENTER, Agent
from homeport.registry.fronts.consul.answers import Answer, Refusal
from homeport.registry.fronts.consul.durations import parse_duration
from homeport.registry.fronts.consul.waiting import Resource

Kind = Literal["flag", "text", "texts", "number", "duration", "filter"]
Support = Literal["supported", "differs", "refused"]
Query = tuple[tuple[str, str], ...]  # names and values in order, as they were sent

NUMBER_MAX: Final = 2**64 - 1  # flags and indexes are unsigned 64-bit numbers
QUERY_FIELDS_MAX: Final = 64  # parameters of one request
KEPT: Final = 1024  # decoded queries: clients ask the same few again and again
KEPT_CHARS_MAX: Final = (
    256  # of each, so that they are few bytes, too; none with a token, which is not to stay anywhere
)
STREAM: Final = "stream"  # what a row takes whose view reads the body itself, piece by piece


class Asker(Protocol):
    """Whoever sent a request."""

    @property
    def remote(self) -> str | None:
        """Its address."""
        ...


_NONE: Final[Mapping[str, Any]] = {}


class Parameter(msgspec.Struct, frozen=True):
    """One query parameter of an endpoint; `note` says how it differs, or why it is refused."""

    name: str
    kind: Kind
    support: Support = "supported"
    note: str = ""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One row of the table.

    `path` may end in one variable, which takes the rest of the path, slashes and all, or all but a fixed ending after
    it; `*` as method is any. `view` is a pure function of the call for reads; for writes it returns an awaitable.
    `resource` makes a read one that can block. `takes` is what the body is decoded as (`bytes`: as it is; `STREAM`: it
    is not, the view reads `call.pieces`); `body_optional` lets an empty one stand for `{}`. `answers` is what an answer
    with one of the `statuses` holds (None: text); `rows` are what its filter chooses from. `read` adds the headers and
    parameters that every read of the catalogue and of keys has.
    """

    method: str
    path: str
    summary: str
    view: Callable[[Call], Answer | Awaitable[Answer]] | None = None
    parameters: tuple[Parameter, ...] = ()
    resource: Callable[[Call], Resource] | None = None
    takes: Any = None
    answers: Any = None
    rows: type[msgspec.Struct] | None = None
    statuses: tuple[int, ...] = (200,)
    access: Access = "read"
    read: bool = False
    body_bytes_max: int = 0
    body_optional: bool = False
    support: Support = "supported"
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


class Call:
    """A request as its view sees it."""

    __slots__ = ("agent", "asker", "body", "caller", "endpoint", "payload", "pieces", "raw", "values")

    def __init__(
        self, endpoint: Endpoint, agent: Agent, caller: Caller, raw: bytes, values: Mapping[str, Any], body: bytes = b""
    ) -> None:
        self.endpoint = endpoint
        self.agent = agent
        self.caller = caller
        self.raw = raw  # the path's variable, decoded to bytes
        self.values = values
        self.body = body
        self.payload: Any = None
        self.pieces: AsyncIterator[bytes] | None = None
        self.asker: Asker | None = None

    @property
    def name(self) -> str:
        """The path's variable as text.

        Raises:
            Refusal: 400; it is empty, or not UTF-8.
        """
        if not self.raw:
            raise Refusal(400, f"Missing {self.endpoint.path.rpartition('{')[2].strip('}')}")
        try:
            return self.raw.decode()
        except UnicodeDecodeError:
            raise Refusal(400, "the path is not valid UTF-8") from None

    def flag(self, name: str) -> bool:
        return bool(self.values.get(name))

    def text(self, name: str) -> str:
        found: str = self.values.get(name, "")
        return found

    def texts(self, name: str) -> list[str]:
        found: list[str] = self.values.get(name, [])
        return found

    def number(self, name: str) -> int | None:
        return self.values.get(name)

    def seconds(self, name: str) -> float | None:
        return self.values.get(name)

    @property
    def filter(self) -> Predicate | None:
        """What says whether the caller wants a row; None: it wants all."""
        return self.values.get("filter")


def decode_variable(raw: str) -> bytes:
    """The bytes that the rest of a path stands for: percent-decoded once, otherwise as sent."""
    return unquote_to_bytes(raw) if "%" in raw else raw.encode()


def decode_query(raw: str) -> Query:
    """The parameters of a query in order.

    Raises:
        Refusal: 400; there are too many.
    """
    return _parsed(raw) if len(raw) <= KEPT_CHARS_MAX and "token" not in raw else _parse(raw)


def _parse(raw: str) -> Query:
    try:
        return tuple(parse_qsl(raw, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX))
    except ValueError:
        raise Refusal(400, f"Too many query parameters; allowed: {QUERY_FIELDS_MAX}") from None


_parsed: Final = functools.lru_cache(KEPT)(_parse)


def decode_parameters(endpoint: Endpoint, query: Query) -> Mapping[str, Any]:
    """The values of a row's parameters by name, each of the type its kind says.

    Raises:
        Refusal: a value cannot be read (400), is refused (400), or names another datacenter (500, as in Consul).
        InvalidArgument: the filter is none that these rows can be asked.
    """
    if not query:
        return _NONE
    brief = sum(len(text) for _, text in query) <= KEPT_CHARS_MAX and all(name != "token" for name, _ in query)
    return _decoded(endpoint, query) if brief else _decode(endpoint, query)


_ABSENT_WHEN_EMPTY: Final = frozenset({"index", "wait"})  # `?index=&wait=`, as scripts send it, is no question


def _decode(endpoint: Endpoint, query: Query) -> Mapping[str, Any]:
    values: dict[str, Any] = {}
    for name, text in query:
        parameter = next((one for one in endpoint.parameters if one.name == name), None)
        if parameter is None:
            continue
        if parameter.support == "refused":
            if text not in ("", "default"):
                raise Refusal(400, f"Query parameter {name!r} is not supported here: {parameter.note}")
        elif parameter.kind == "texts":
            values.setdefault(name, []).append(text)
        elif name in values or (not text and name in _ABSENT_WHEN_EMPTY):
            continue  # of several, the first counts, as in Go
        elif parameter.kind == "filter":
            assert endpoint.rows is not None, f"{endpoint.name} has a filter and no rows"
            if text.strip():
                values[name] = compiled(text, endpoint.rows)
        else:
            values[name] = _value(parameter, text)
    if values.get("dc", DATACENTER) not in ("", DATACENTER):
        raise Refusal(500, f"No path to datacenter; this one is {DATACENTER!r}")
    if values.get("peer"):
        values["filter"] = _nothing
    if values.get("stale") and values.get("consistent"):
        raise Refusal(400, "Cannot specify ?stale with ?consistent, conflicting semantics.")
    return values


def _nothing(_row: object) -> bool:
    """What chooses from the rows that a peer sent, of which there are none."""
    return False


_decoded: Final = functools.lru_cache(KEPT)(_decode)


def decode_body(call: Call) -> None:
    """Give the call its payload.

    Raises:
        Refusal: 400; the body is not what the endpoint takes.
    """
    takes = call.endpoint.takes
    if takes is bytes:
        call.payload = call.body
    elif takes is not None:
        empty = call.endpoint.body_optional and not call.body.strip()
        call.payload = bodies.decode(takes, b"{}" if empty else call.body)


def _value(parameter: Parameter, text: str) -> Any:
    match parameter.kind:
        case "flag":
            if text.lower() in ("false", "0", "f"):
                return False
            if text.lower() in ("", "true", "1", "t"):
                return True
            raise Refusal(400, f"Invalid {parameter.name}: {text!r} is neither true nor false")
        case "number":
            if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= NUMBER_MAX):
                raise Refusal(400, f"Invalid {parameter.name}: {text[:40]!r} is not an unsigned 64-bit number")
            return int(text)
        case "duration":
            try:
                seconds = parse_duration(text)
            except ValueError as error:
                what = "wait time" if parameter.name == "wait" else parameter.name
                raise Refusal(400, f"Invalid {what}: {error}") from None
            return seconds
        case _:
            return text
