"""A proxy's process keeps freed memory where the C library can be told to."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from homeport.mesh import heap

# Frees a block at the heap's end and asks the C library how much it still holds from the system (mallinfo2's arena).
SCRIPT = """
import ctypes
from homeport.mesh import heap
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd u fs uo fo keep".split()]
library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
assert heap.keep()
before = library.mallinfo2().arena
block = bytes(3_000_000)
del block
print(library.mallinfo2().arena - before)
"""


def test_what_was_freed_is_kept_for_the_next_body() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library than glibc")
    assert heap.keep()
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3_000_000
