"""What every message is, and those that a connection begins with and lives by."""

from __future__ import annotations

from typing import ClassVar, Final, Generic, TypeVar

import msgspec

PROTOCOL_VERSION: Final = 1

R = TypeVar("R")


class Request(msgspec.Struct, Generic[R], frozen=True, omit_defaults=True):
    """A question whose answer is an `R`."""

    method: ClassVar[str] = ""


class Notice(msgspec.Struct, frozen=True):
    """Something said without waiting for an answer."""

    method: ClassVar[str] = ""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request is answered with."""


class Welcome(Answer, frozen=True, omit_defaults=True):
    """Who answered: `store_id` names the history, so a restart without data is never taken for the same one."""

    version: int
    server: str
    node: str
    store_id: str
    revision: int
    limits: dict[str, int]


class Hello(Request[Welcome], frozen=True, omit_defaults=True):
    """The first request of every connection; anything else before it is refused."""

    method = "hello"
    version: int = PROTOCOL_VERSION
    token: str = ""
    client: str = ""


class Pong(Answer, frozen=True, omit_defaults=True):
    """The registry lives, and shows this revision."""

    revision: int


class Ping(Request[Pong], frozen=True, omit_defaults=True):
    """Is anybody there, and at which revision?"""

    method = "ping"


class Done(Answer, frozen=True, omit_defaults=True):
    """`applied` says whether anything changed; a stale owner's late call is a no-op that says so."""

    applied: bool
    revision: int
