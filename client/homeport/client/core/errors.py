"""Every error a caller can meet, in one place; the class says whose fault it is.

`RequestError`: the caller asked for something that cannot be, and asking again will not help. `RegistryError`: the
registry could not do it now. `ConnectionLost`: nobody knows, because the answer never came. Each has a stable `code`
(the wire form is `[code, message, details]`), a message of bounded length that says what is allowed, and `details` for
programs.
"""

from __future__ import annotations

from typing import ClassVar, Final

# Messages echo what was sent, which may be long; its end says what is allowed, so the middle is what can be spared.
MESSAGE_CHARS_MAX: Final = 300
_MESSAGE_END_CHARS: Final = 120


def _shortened(message: str) -> str:
    if len(message) <= MESSAGE_CHARS_MAX:
        return message
    return f"{message[: MESSAGE_CHARS_MAX - _MESSAGE_END_CHARS - 3]}...{message[-_MESSAGE_END_CHARS:]}"


class HomeportError(Exception):
    """The base of all errors raised by Homeport."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, /, **details: object) -> None:
        message = _shortened(message)
        super().__init__(message)
        self.message = message
        self.details = details


class RequestError(HomeportError):
    """The caller's mistake; nothing was changed."""

    code = "request"


class InvalidArgument(RequestError):
    """A field is missing, of the wrong type or out of range; the message says what is allowed."""

    code = "invalid_argument"


class UnknownMethod(RequestError):
    """The registry has no such method; `details["allowed"]` lists those it has."""

    code = "unknown_method"


class LimitExceeded(RequestError):
    """A named limit would be passed; `details` holds `limit` and `allowed`."""

    code = "limit_exceeded"


class NotFound(RequestError):
    """What was named does not exist."""

    code = "not_found"


class LeaseGone(RequestError):
    """The lease has ended or was never granted, or another registration has taken its place."""

    code = "lease_gone"


class CasFailed(RequestError):
    """The key was not at the revision that the write demanded; `details["revision"]` is where it is (0: absent)."""

    code = "cas_failed"


class BadValue(RequestError):
    """What is stored under a key is not of the type that it was read as; the message says which key, and how."""

    code = "bad_value"


class Compacted(RequestError):
    """History at that revision is gone; `details["compact_revision"]` is the oldest that can still be read."""

    code = "compacted"


class FutureRevision(RequestError):
    """The registry has not reached that revision; `details["revision"]` is where it is."""

    code = "future_revision"


class Unauthorized(RequestError):
    """The token is missing or not accepted."""

    code = "unauthorized"


class WrongLoop(RequestError):
    """An in-process client was used from another event loop than its registry's."""

    code = "wrong_loop"


class ProtocolError(RequestError):
    """The bytes on the connection were not the protocol; the connection is closed after this."""

    code = "protocol"


class RegistryError(HomeportError):
    """The registry could not do it now; the same request may succeed later."""

    code = "registry"


class Busy(RegistryError):
    """Too much is under way for this connection or this registry; `details["retry_after_s"]` says when to come back."""

    code = "busy"


class ReadOnly(RegistryError):
    """The registry cannot write (full disk, I/O error, no quorum); reads go on."""

    code = "read_only"


class OutcomeUnknown(RegistryError):
    """A write failed on its way to disk: it may or may not have happened. Read before writing again."""

    code = "outcome_unknown"


class Internal(RegistryError):
    """A defect of the registry; its log has the traceback."""

    code = "internal"


class Unavailable(HomeportError):
    """No registry could be reached within the time allowed."""

    code = "unavailable"


class Stale(Unavailable):
    """What is known was confirmed longer ago than the caller allows; `details["age_s"]` says how long."""

    code = "stale"


class ConnectionLost(Unavailable):
    """The connection broke before the answer came: a write may or may not have happened."""

    code = "connection_lost"


class Closed(HomeportError):
    """This client, registration or registry was closed."""

    code = "closed"


def again(error: HomeportError) -> HomeportError:
    """The same error anew, to be raised once more: an exception that is raised twice drags both tracebacks along."""
    return type(error)(error.message, **error.details)


def _family(root: type[HomeportError]) -> dict[str, type[HomeportError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _family(child)
    return found


BY_CODE: Final[dict[str, type[HomeportError]]] = _family(HomeportError)


def to_wire(error: HomeportError) -> tuple[str, str, dict[str, object]]:
    """The `[code, message, details]` that stands for this error on every connection."""
    return error.code, error.message, error.details


def from_wire(code: str, message: str, details: dict[str, object]) -> HomeportError:
    """The error that `to_wire` described; an unknown code becomes a plain `HomeportError`."""
    return BY_CODE.get(code, HomeportError)(message, **{str(k): v for k, v in details.items()})
