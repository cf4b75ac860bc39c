"""Retry-After: how long an answer asks to be left alone (RFC 9110 10.2.3)."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Final

_DIGITS_MAX: Final = 9  # thirty years of seconds


def delay_s(value: bytes, wall_s: float) -> float | None:
    """The seconds that a Retry-After asks to wait, from its seconds or its date; None: it is neither.

    Args:
        wall_s: the wall clock's time, in seconds since 1970.
    """
    text = value.strip()
    if text.isdigit():
        return float(text) if len(text) <= _DIGITS_MAX else None
    try:
        until = parsedate_to_datetime(text.decode("latin-1"))
        return max(0.0, until.timestamp() - wall_s)
    except (ValueError, OverflowError, IndexError):
        return None
