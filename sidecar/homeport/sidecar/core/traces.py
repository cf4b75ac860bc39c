"""W3C trace context: whose trace a request belongs to, and the span that this hop adds to it.

A request's `traceparent` names its trace and the span that sent it. A hop that takes part writes its own span there,
and keeps `tracestate` as it came. A `traceparent` that is not one starts a new trace, without the old state
(W3C Trace Context, 4.3). Whether a trace is sampled is decided once, where it starts; everyone after keeps to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from homeport.client.core.backoff import Rng

_PARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NOT_ZERO: Final = 1 << 64 | 1  # a bit of either id, since neither may be all zeros
_SAMPLED: Final = 1
_KNOWN_FLAGS: Final = 3  # sampled, and that the trace's id is random; others must be 0 when sent (level 2)


class Context:
    """One hop's place in a trace; ids in hex, `parent` empty where the trace starts."""

    __slots__ = ("flags", "parent", "span", "trace")

    def __init__(self, trace: str, parent: str, span: str, flags: int) -> None:
        self.trace = trace
        self.parent = parent
        self.span = span
        self.flags = flags

    @property
    def sampled(self) -> bool:
        return bool(self.flags & _SAMPLED)

    @property
    def line(self) -> bytes:
        """The header that the next hop gets."""
        return f"traceparent: 00-{self.trace}-{self.span}-{self.flags:02x}".encode()


def join(lines: Sequence[bytes], sampling: float, rng: Rng) -> tuple[Context, list[bytes]]:
    """Take part in the trace of a request with these header lines, or start one, sampled with that probability.

    Returns our place in it, and the lines that go on.
    """
    parents: list[bytes] = []
    states: list[bytes] = []
    others: list[bytes] = []
    for line in lines:
        if line[:5].lower() != b"trace":  # nearly all
            others.append(line)
            continue
        name = line.partition(b":")[0].lower()
        if name == b"traceparent":
            parents.append(line[12:].strip())
        elif name == b"tracestate":
            states.append(line)
        else:
            others.append(line)
    drawn = f"{rng.randrange((1 << 192) - 1) | _NOT_ZERO:048x}"  # one draw for both ids
    span = drawn[32:]
    found = _parsed(parents[0]) if len(parents) == 1 else None
    if found is None:
        flags = 2 | _SAMPLED if rng.random() < sampling else 2
        context = Context(drawn[:32], "", span, flags)
    else:
        trace, parent, flags = found
        context = Context(trace, parent, span, flags)
        others += states
    others.append(context.line)
    return context, others


def _parsed(value: bytes) -> tuple[str, str, int] | None:
    match = _PARENT.fullmatch(value)
    if match is None:
        return None
    version, trace, parent, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more) or not int(trace, 16) or not int(parent, 16):
        return None
    return trace.decode(), parent.decode(), int(flags, 16) & _KNOWN_FLAGS
