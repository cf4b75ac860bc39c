"""Reading /proc: on lines written by hand, and on processes that are really there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import proc
from benchmarks.proc import Stat, parse_stat, tree

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")

# Fields 14 to 17 are CPU ticks, 24 resident pages; those in between that do not matter are zero.
_LINE = "{pid} ({name}) S {parent} 0 0 0 0 0 0 0 0 0 11 22 33 44 0 0 0 0 0 0 555 0 0\n"


@pytest.mark.parametrize("name", ["nginx", "two words", "a) S 1 (b", "((", ")"])
def test_a_process_may_have_any_name(name: str) -> None:
    assert parse_stat(_LINE.format(pid=7, name=name, parent=3)) == Stat(7, 3, 33, 77, 555)


@pytest.mark.parametrize("text", ["", "7 (x) S 3", "nonsense"])
def test_what_is_no_stat_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a line|invalid literal"):
        parse_stat(text)


def test_a_tree_holds_all_descendants_and_nobody_else() -> None:
    stats = [Stat(pid, parent, 1, 0, 1) for pid, parent in ((5, 2), (2, 1), (3, 1), (4, 2), (1, 0), (6, 3))]
    assert {stat.pid for stat in tree(stats, 2)} == {2, 4, 5}
    assert tree(stats, 9) == []


def test_cpu_of_a_process_counts_its_children_once_alive_or_reaped() -> None:
    """The parent reaps one child that used CPU and keeps another alive; both are in the sum."""
    burn = "import time\nwhile time.process_time() < 0.2: pass\n"
    code = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {burn!r}], check=True)\n"
        f"left = subprocess.Popen([sys.executable, '-c', {burn!r} + 'print(1, flush=True)\\ninput()'],\n"
        "    stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "left.stdout.readline()\n"
        "print('both', flush=True)\n"
        "input()\n"
        "left.communicate(b'end\\n')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        once, twice = proc.cpu_s([process.pid]), proc.cpu_s([process.pid, process.pid])
        process.communicate(b"end\n")
    assert once >= 0.35  # twice 0.2, less a tick for every time that the kernel rounds down
    assert twice < once + 0.1


def test_cpu_of_a_process_that_lives_is_not_counted_in_ticks() -> None:
    code = "import time\nwhile time.process_time() < 0.033: pass\nprint(time.process_time(), flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        says = float(process.stdout.readline())
        found = proc.cpu_s([process.pid])
        process.communicate(b"end\n")
    assert says <= found < says + 0.5 / proc.TICKS_PER_S


def test_memory_is_in_bytes() -> None:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    kibibytes = int(line.split()[1])
    assert proc.rss_bytes(os.getpid()) == pytest.approx(kibibytes * 1024, rel=0.2)


def test_a_process_that_is_gone_used_nothing() -> None:
    assert proc.cpu_s([]) == 0
    assert proc.rss_bytes(1 << 30) == 0
