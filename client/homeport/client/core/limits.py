"""What a client puts up with, by name, with the reason for the number."""

from __future__ import annotations

from typing import Final

CALL_S: Final = 5.0  # for a call, waiting for a link included: a registry restarts in less
