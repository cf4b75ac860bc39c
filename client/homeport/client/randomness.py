"""Where randomness comes from when nobody gave any: from the system, or from a loop whose runs a seed decides."""

from __future__ import annotations

import asyncio
import random


def own_rng() -> random.Random:
    """A generator for one owner. Under a loop with a generator of its own (`rng`: virtual time), seeded by that one."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return random.Random()
    of_loop = getattr(loop, "rng", None)
    return random.Random(of_loop.getrandbits(64) if isinstance(of_loop, random.Random) else None)
