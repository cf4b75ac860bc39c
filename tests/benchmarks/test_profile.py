"""Looks of a profiler are counted where they belong."""

from __future__ import annotations

import pytest

from benchmarks.profile import place, table, tops

_OURS = "data_received (sidecar/http1/downstream.py:123)"


@pytest.mark.parametrize(
    ("stack", "where"),
    [
        ([_OURS, "head_end (sidecar/http1/framing.py:65)"], "sidecar/http1/framing.py"),
        ([_OURS, "malloc (libc.so.6)", "0x7fb5 (libc.so.6)"], "sidecar/http1/downstream.py"),
        ([_OURS, "uv_try_write (stream.c:1)", "__libc_write (libc.so.6)"], "the kernel: write"),
        (["run (asyncio/runners.py:118)", "Loop__run (loop.c:19903)"], "uvloop and libuv"),
        (
            [
                "run (asyncio/runners.py:118)",
                "uv_run (core.c:464)",
                "uv__io_poll (linux.c:1)",
                "epoll_pwait (libc.so.6)",
            ],
            "",
        ),
        (["_worker (thread.py:81)", "PyThread_acquire_lock_timed (libpython)", "0x7f (libc.so.6)"], ""),
    ],
)
def test_a_look_belongs_to_the_kernel_or_to_the_file_that_was_at_work(stack: list[str], where: str) -> None:
    assert place(stack) == where


def test_shares_are_of_what_was_at_work_and_add_up() -> None:
    raw = f"a (x.py:1);b (y.py:2) 30\nc (x.py:7) 10\n{_OURS};epoll_pwait (libc.so.6) 500\n"
    looks = tops(raw)
    assert looks == {"y.py": 30, "x.py": 10}
    assert table(looks)[2:] == ["| y.py | 75.0% |", "| x.py | 25.0% |", "| everything else | 0.0% |"]
