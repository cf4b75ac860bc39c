"""What an endpoint answers, and how an error becomes an answer: the one place where errors meet status codes."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Final, Protocol

import msgspec

from homeport.client.core.errors import (
    Busy,
    CasFailed,
    Closed,
    HomeportError,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    ReadOnly,
    RequestError,
    Unauthorized,
)

JSON: Final = "application/json"
CONTENT_HASH: Final = "X-Consul-ContentHash"
TEXT: Final = "text/plain; charset=utf-8"
RETRY_AFTER_S: Final = 1  # told to those who came when there was no room


class Stream(Protocol):
    """The body of an answer in pieces; closed when nobody wants more of it, asked for any or not."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A response before it is written. `index` 0: it belongs to nothing that can be waited for.

    `stream`, where given, is the body in pieces, written as they come until it ends or the client goes; it is closed
    in either case.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    index: int = 0
    headers: dict[str, str] = {}
    stream: Stream | None = None


NOTHING: Final = Answer(content_type=TEXT)
YES: Final = Answer(body=b"true")
NO: Final = Answer(body=b"false")


class Refusal(Exception):
    """A request that is not carried out, in the words of this API; raised by views, caught by the front alone."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}

    def answer(self) -> Answer:
        return Answer(status=self.status, body=str(self).encode(), content_type=TEXT, headers=self.headers)


def content_hash(answer: Answer) -> str:
    """What stands for the answer's content in `?hash`: equal for equal content, whatever its index."""
    return answer.headers.get(CONTENT_HASH) or hashlib.blake2b(answer.body, digest_size=8).hexdigest()


def with_content_hash(answer: Answer) -> Answer:
    headers = {**answer.headers, CONTENT_HASH: content_hash(answer)}
    return msgspec.structs.replace(answer, headers=headers)


def crowded(what: str) -> Refusal:
    """There is no room for more of `what`; come back later."""
    return Refusal(429, f"Too many {what}; try again later", {"Retry-After": str(RETRY_AFTER_S)})


_STATUSES: Final[tuple[tuple[type[HomeportError], int], ...]] = (
    (Unauthorized, 403),
    (NotFound, 404),
    (CasFailed, 409),
    (LimitExceeded, 413),
    (InvalidArgument, 400),
    (RequestError, 400),
    (Busy, 429),
    (ReadOnly, 503),
    (Closed, 503),
    (HomeportError, 500),
)


def refused(error: HomeportError) -> Answer:
    """The answer that tells of an error of the registry."""
    status = next(status for kind, status in _STATUSES if isinstance(error, kind))
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else {}
    return Answer(status=status, body=error.message.encode(), content_type=TEXT, headers=headers)
