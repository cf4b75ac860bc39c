"""The access log: one line of JSON for each HTTP request, on a logger of its own, written only where it was asked for.

A token that came in the query is never written. A request whose client hung up before its answer has status 499, as
nginx writes it.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
from typing import Final

import msgspec
from aiohttp import web

access = logging.getLogger("homeport.registry.http.access")
access.addHandler(logging.NullHandler())

HUNG_UP: Final = 499
TARGET_SHOWN_MAX: Final = 2048  # of a path and query; longer ones are cut, so that a line stays a line
_TOKEN: Final = re.compile(r"(?<=[?&])(token=)[^&]*", re.IGNORECASE)
_encode: Final = msgspec.json.Encoder().encode


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What is written of a request; `endpoint` is its row of the table, empty where there is none."""

    time: str
    remote: str
    method: str
    target: str
    endpoint: str
    status: int
    bytes: int
    duration_ms: float
    user_agent: str


def write(request: web.BaseRequest, endpoint: str, status: int, body_bytes: int, duration_s: float) -> None:
    """Log one request, on the level INFO."""
    if not access.isEnabledFor(logging.INFO):
        return
    line = Line(
        time=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        remote=request.remote or "",
        method=request.method,
        target=_TOKEN.sub(r"\1***", request.raw_path)[:TARGET_SHOWN_MAX],
        endpoint=endpoint,
        status=status,
        bytes=body_bytes,
        duration_ms=round(duration_s * 1e3, 3),
        user_agent=request.headers.get("User-Agent", ""),
    )
    access.info("%s", _encode(line).decode())
