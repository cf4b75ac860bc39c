"""How the C library keeps memory that a proxy has freed: for the next body, instead of giving it back each time.

A body of 64 KiB is the last thing on the heap when it is freed. By default glibc then returns the pages to the system,
and the next body takes a fault for each of its pages anew: a third of what such a request costs.
"""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_KEPT_BYTES: Final = 32 * 1024 * 1024  # free at the heap's end before anything is given back
_PAD_BYTES: Final = 1024 * 1024  # taken from the system at once
_OWN_MAP_BYTES: Final = 4 * 1024 * 1024  # larger blocks come and go by themselves; a read's buffer is 256 KiB


def keep() -> bool:
    """Keep freed memory in this process; False where the C library has no such setting."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc, or not a system with one C library for all
        return False
    settings = ((_TRIM_THRESHOLD, _KEPT_BYTES), (_TOP_PAD, _PAD_BYTES), (_MMAP_THRESHOLD, _OWN_MAP_BYTES))
    taken = [mallopt(name, value) for name, value in settings]
    return taken == [1, 1, 1]
