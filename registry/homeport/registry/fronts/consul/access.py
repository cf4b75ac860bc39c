"""Who calls and what they may: the one place that knows tokens.

A registry has one token or none. With one, everything that is not `open` needs it, however it is carried: as
`X-Consul-Token`, as `Authorization: Bearer`, or as `?token`.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from homeport.registry.fronts.consul.answers import Refusal

Access = Literal["open", "read", "write"]

_BEARER: Final = "bearer "


class Caller(msgspec.Struct, frozen=True):
    """Who sent a request."""

    token: str = ""


NOBODY: Final = Caller()


def caller_of(headers: Mapping[str, str], query: Sequence[tuple[str, str]]) -> Caller:
    """Take the token from wherever it is; `headers` ignore case. A token in the query counts first, as in Consul."""
    for name, value in query:
        if name == "token" and value:
            return Caller(value)
    if token := headers.get("X-Consul-Token", ""):
        return Caller(token)
    authorization = headers.get("Authorization", "")
    if authorization[: len(_BEARER)].lower() == _BEARER:
        return Caller(authorization[len(_BEARER) :].strip())
    return NOBODY


def refuse_pages(token: str, headers: Mapping[str, str], access: Access) -> None:
    """Keep web pages from writing through their readers' browsers, which name the page in `Origin`.

    A page of anybody's can have a browser send requests to its own machine, where a registry without a token would
    carry them out. With a token there is no need: the page does not know it.

    Raises:
        Refusal: 403.
    """
    if access == "write" and not token and "Origin" in headers:
        raise Refusal(403, "Permission denied: requests of web pages (with an Origin) may not write without a token")


def authorize(token: str, caller: Caller, access: Access) -> None:
    """Let the caller do what needs `access`, in a registry whose token this is.

    Raises:
        Refusal: 403.
    """
    if not token or access == "open":
        return
    if hmac.compare_digest(token.encode(), caller.token.encode(errors="surrogateescape")):
        return
    raise Refusal(403, "Permission denied: the token is missing or not accepted")
