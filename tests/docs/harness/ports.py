"""The ports that pages name, and the free ones that stand for them while a page runs."""

from __future__ import annotations

import random
import re
import socket
from typing import Final

# A page says `homeport serve` and 8500, as its reader will; several pages run at the same time, beside other tests.
NAMED: Final = (8300, 8500, 8600, 9300, 15000, 15001, 15006, 15016, 15026, 8080, 8081, 8082, 9000, 5432, 5433, 50051)
_NAMED: Final = re.compile(rf"\b({'|'.join(map(str, NAMED))})\b")
# Below the ports that systems deal out themselves, so that nobody is dealt one between our look and its use.
_LOWEST, _HIGHEST = 20_000, 32_000


class Ports:
    """A free port for each named one, in the same order, as the things at them are listed in order."""

    def __init__(self, rng: random.Random) -> None:
        free: set[int] = set()
        while len(free) < len(NAMED):
            port = rng.randrange(_LOWEST, _HIGHEST)
            if _is_free(port):
                free.add(port)
        self._free = dict(zip(sorted(NAMED, key=str), sorted(free), strict=True))

    def __getitem__(self, named: int) -> int:
        return self._free[named]

    def fill(self, text: str) -> str:
        """What runs, of what is written."""
        return _NAMED.sub(lambda found: str(self._free[int(found[0])]), text)

    def back(self, text: str) -> str:
        """What would be written, of what a run said; as wide, so that tables keep their columns."""
        for named, free in self._free.items():
            text = re.sub(rf"\b{free}\b", str(named), text)
        return text

    def variables(self) -> dict[str, str]:
        """What gives commands that are run without options the free ports in place of their defaults."""
        defaults = {
            "HOMEPORT_REGISTRY": 8300,
            "HOMEPORT_SERVE_RPC": 8300,
            "HOMEPORT_SERVE_HTTP": 8500,
            "HOMEPORT_SERVE_DNS": 8600,
            "HOMEPORT_DOCTOR_HTTP": 8500,
            "HOMEPORT_DOCTOR_DNS": 8600,
            "HOMEPORT_TOP_ADMIN": 15000,
        }
        for command in ("RUN", "SIDECAR"):
            defaults |= {
                f"HOMEPORT_{command}_ADMIN": 15000,
                f"HOMEPORT_{command}_OUTBOUND": 15001,
                f"HOMEPORT_{command}_INBOUND": 15006,
            }
        return {name: f"127.0.0.1:{self._free[named]}" for name, named in defaults.items()}


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(type=kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
