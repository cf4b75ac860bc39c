"""The registry's token, as commands find it: in the environment, never on a command line, which everybody can see."""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "HOMEPORT_TOKEN"


def token() -> str:
    """What `homeport serve` asks for and every other command presents; empty: nothing."""
    return os.environ.get(VARIABLE, "")
