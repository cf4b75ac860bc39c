"""Which headers a rule may read or change: those that pass the proxy as they came."""

from __future__ import annotations

import re
from typing import Final

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
# What the proxy consumes or writes itself: how a message is framed, how it travels, and what sidecars tell each other.
_CONSUMED: Final = re.compile(
    r"host|content-length|transfer-encoding|connection|keep-alive|te|trailer|upgrade|expect|via|forwarded"
    r"|http2-settings|proxy-.*|x-forwarded-.*|x-homeport-.*",
    re.IGNORECASE,
)
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]{0,1022}[\x21-\x7e])?")


def is_token(name: str) -> bool:
    """Whether a header or a cookie may have this name."""
    return _TOKEN.fullmatch(name) is not None


def passes(name: str) -> bool:
    """Whether a header of this name passes as it came."""
    return is_token(name) and _CONSUMED.fullmatch(name) is None


def is_value(value: str) -> bool:
    """Whether a header may say this: visible ASCII, spaces and tabs within, 1024 characters at most."""
    return _VALUE.fullmatch(value) is not None
