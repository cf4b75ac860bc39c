"""One line of an access log per exchange or TCP connection, in JSON or in the common log format.

Response flags are Envoy's where Envoy has them:

| flag | what happened                                  | flag | what happened                              |
|------|------------------------------------------------|------|--------------------------------------------|
| NR   | no such service, or no route                   | URX  | no retry was left                          |
| UH   | no instance is available                       | DC   | the client left before the end             |
| UF   | no connection came to be                       | DPE  | the client does not speak the protocol     |
| UC   | the upstream's connection broke                | SI   | nothing moved for too long                 |
| UT   | the upstream took too long                     | LR   | ended because its instance had left        |
| UO   | a limit is reached                             | IR   | answered from memory, by idempotency key   |
| IX   | not run: by its key it may have run before     | HG   | a second try, sent alongside, was answered |
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal

import msgspec

LogFormat = Literal["json", "common"]


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one exchange when it is over. Bytes are those of bodies; status 0: there was no answer."""

    time: str  # when it began, UTC
    listener: str
    client: str
    method: str = ""
    target: str = ""
    protocol: str = ""
    host: str = ""
    status: int
    flags: str = ""  # with commas between them
    bytes_in: int
    bytes_out: int
    duration_ms: float
    service: str = ""
    upstream: str = ""
    retries: int = 0
    trace_id: str = ""
    user_agent: str = ""


_encode: Final = msgspec.json.Encoder().encode


def time_of(at_s: float) -> str:
    """The wall clock's time as an entry has it."""
    second = int(at_s)
    return f"{_iso(second)}.{int((at_s - second) * 1000):03d}Z"


# Many lines are of the same second, and calendars are the dearest part of a line.
@lru_cache(maxsize=4)
def _iso(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=4)
def _common(iso: str) -> str:
    return datetime.fromisoformat(iso).strftime("%d/%b/%Y:%H:%M:%S +0000")


def line(entry: Entry, form: LogFormat) -> bytes:
    """The entry's line, with its newline; nothing that a client sends can end it early."""
    if form == "json":
        return _encode(entry) + b"\n"
    at = _common(entry.time[:19])
    request = _quoted(f"{entry.method} {entry.target} {entry.protocol}") if entry.method else "-"
    status = entry.status or "-"
    common = f'{entry.client} - - [{at}] "{request}" {status} {entry.bytes_out or "-"}'
    ours = f"{entry.flags or '-'} {entry.service or '-'} {entry.upstream or '-'} {entry.duration_ms:.3f}"
    return f"{common} {ours}\n".encode()


def _quoted(text: str) -> str:
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(each if each.isprintable() and each not in '"\\' else f"\\x{ord(each) & 0xFF:02x}" for each in text)
