"""Every bound of the proxy, with the reason for its number. Nothing in the proxy grows past one of these.

`Limits` and `Timeouts` are what an operator may set, one object of each for a whole sidecar; the constants are not,
because nobody is better off with another number.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

# The size of a message's parts, in bytes.
CHUNK_LINE_BYTES_MAX: Final = 1024  # one chunk-size line with its extensions; nobody sends any
CHUNK_EXTENSION_BYTES_MAX: Final = 16 * 1024  # all extensions of one message: after this they are an attack
TRAILER_BYTES_MAX: Final = 8 * 1024  # trailers carry a checksum or a status, never more
LEADING_CRLF_MAX: Final = 4  # empty lines before a request, which RFC 9112 2.2 asks servers to forgive

# What is held in memory.
LINES_REMEMBERED_MAX: Final = 2048  # header lines that were found good, in each of two generations and for each kind
LINE_REMEMBERED_BYTES_MAX: Final = 256  # longer ones are tokens and cookies, which are somebody's own; 4 MiB in all
GATHERED_BYTES_MAX: Final = 16 * 1024  # a write that is gathered with others until the turn of the loop ends
PIPELINED_BYTES_MAX: Final = 64 * 1024  # requests that wait unparsed behind the one under way; then reading pauses
LINGER_BYTES_MAX: Final = 1024 * 1024  # discarded after an early answer, so that closing does not destroy that answer

# How many.
INTERIM_MAX: Final = 8  # 1xx answers to one request
RETRIES_MAX: Final = 2  # three tries in all; more multiply an overload instead of hiding a fault
ACTIVE_MAX: Final = (
    1024  # requests under way per endpoint (Envoy's circuit breaker default); its idle connections follow
)
SERVICES_MAX: Final = 1024  # names followed at once: an unknown Host must not grow memory without bound
MIRRORS_MAX: Final = 128  # copies of requests under way: what they are sent to must not slow down what they copy
HOSTS_CACHED_MAX: Final = 4096  # spellings of Host whose route is remembered

# How long, in seconds.
SWEEP_S: Final = 0.1  # one sweep finds all deadlines that have passed
POOL_IDLE_S: Final = 1.5  # how long ours are kept: below gunicorn's 2 s and uvicorn's 5 s, so that we close first
POOL_IDLE_ONCE_S: Final = 0.1  # for a request that is sent once only; a service that is quieter can afford a connect
POOL_IDLE_SHARE: Final = 0.75  # of what an instance says it keeps idle connections, for clocks and travel
GROWTH_STEP_S: Final = 0.5  # how often the weights of newcomers grow; a choice is prepared anew each time
SUSPECT_S: Final = 1.0  # a failed host is second choice for this long, then it is tried again
UNUSED_S: Final = 30.0  # a name without instances that nobody asks for is forgotten
MIRROR_S_MAX: Final = 60.0  # for a copy, whose answer nobody waits for
DRAIN_TIMEOUT_S: Final = 30.0  # for requests in flight
RETIRE_TIMEOUT_S: Final = 600.0  # for connections of a process whose successor serves already: no hurry, but an end


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large and how many."""

    line_bytes: int = 16 * 1024  # request line; browsers stop at 2 to 8 KiB, nginx allows 8, h11 16 for all of the head
    head_bytes: int = 64 * 1024  # whole head; Envoy's default is 60 KiB
    headers: int = 128  # Envoy allows 100, Apache 100, and a few are ours
    replay_bytes: int = 64 * 1024  # request body kept for another try, and the failed answer kept for the last one
    buffer_bytes: int = 64 * 1024  # unsent bytes per connection after which the other side is not read any more
    connections: int = 8192  # clients per listener: half of the usual limit of open files, 16,384

    def __post_init__(self) -> None:
        _must_be_positive(self)
        if self.line_bytes < LINE_REMEMBERED_BYTES_MAX:  # a remembered line is not measured again
            raise ValueError(f"line_bytes must be at least {LINE_REMEMBERED_BYTES_MAX}, not {self.line_bytes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long, in seconds. Only `total_s` counts a whole exchange; every other one counts a silence."""

    connect_s: float = 2.0  # one lost SYN is sent again after 1 s; a second lost one means a host to leave
    head_s: float = 10.0  # from a head's first byte to its last, however steadily it drips
    body_s: float = 60.0  # between two pieces of a request's body
    first_byte_s: float = 15.0  # from the end of the request to the answer's head, per try
    stream_s: float = 300.0  # without a piece of the answer's body or of the request's; Envoy's stream idle timeout
    tunnel_s: float = 3600.0  # silence in an upgraded or a TCP connection; WebSocket pings come every minute or so
    leave_s: float = 600.0  # TCP connections to an instance that leaves or fails its checks may go on for this long
    keep_alive_s: float = 60.0  # a client's idle connection is kept; registered as `idle_timeout_s` of inbounds
    flush_s: float = 60.0  # for a client to take the end of an answer, after which its connection closes
    linger_s: float = 2.0  # for a client to read an early answer before the connection is closed under it
    known_s: float = 2.0  # a first request waits this long for its service to become known
    total_s: float | None = None  # an exchange from its head to its last byte; None: as long as bytes flow

    def __post_init__(self) -> None:
        _must_be_positive(self)


def _must_be_positive(bounds: Limits | Timeouts) -> None:
    for each in fields(bounds):
        value = getattr(bounds, each.name)
        if value is not None and not value > 0:
            raise ValueError(f"{each.name} must be more than 0, not {value}")
