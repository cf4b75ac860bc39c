"""Durations as Go writes and reads them: "1h15m30.5s", "300ms", "0s". Seconds on our side."""

from __future__ import annotations

import re
from typing import Final

_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_WHOLE: Final = re.compile(rf"[+-]?(?:{_PART.pattern})+")
_S_MAX: Final = 2**63 / 1e9  # what Go's 64 bits of nanoseconds hold
_TEXT_MAX: Final = 64  # no duration anybody means is longer


def parse_duration(text: str) -> float:
    """Return seconds.

    Raises:
        ValueError: this is not a duration; the message says what one looks like.
    """
    if text in ("0", "+0", "-0"):
        return 0.0
    if len(text) > _TEXT_MAX or not _WHOLE.fullmatch(text):
        raise ValueError(f"{text[:_TEXT_MAX]!r} is not a duration; write for example 10s, 1m30s or 500ms")
    total_s = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
    if total_s >= _S_MAX:
        raise ValueError(f"{text!r} is too long for a duration")
    return -total_s if text.startswith("-") else total_s


def format_duration(seconds: float) -> str:
    """Write seconds the way Go prints a duration, to the microsecond."""
    sign = "-" if seconds < 0 else ""
    micros = round(abs(seconds) * 1e6)
    if micros == 0:
        return "0s"
    if micros < 1000:
        return f"{sign}{micros}µs"
    if micros < 1_000_000:
        return f"{sign}{_decimal(micros / 1000)}ms"
    minutes, rest = divmod(micros, 60_000_000)
    hours, minutes = divmod(minutes, 60)
    above = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{above}{_decimal(rest / 1e6)}s"


def _decimal(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
