"""Processes that do not outlive the one that started them, however that one ends.

On Linux the kernel sends the child SIGKILL the moment its parent is gone (`PR_SET_PDEATHSIG`). Elsewhere there is no
such call: an orderly stop still ends every child, a killed parent does not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tie_to_parent() -> Callable[[], None] | None:
    """Return what a child runs between fork and exec (a `preexec_fn`) to be tied to this process; None if impossible.

    Everything that could allocate or take a lock happens here, before the fork.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call, so the signal will never come
            os._exit(1)

    return tie
