"""Where generator processes come from: `python -m benchmarks.load.process` forks one for every plan.

An interpreter and its imports take longer than many a load is long. Here they are there once, and a generator is a
fork, made within milliseconds: of one thread that has never had a loop, so that nothing of another load is in it.

Standard input is a Unix socket (SOCK_SEQPACKET). Each message is the number of a core, and comes with a socket over
which a new process talks: it says its process id, is told its plan (its length in bytes on a line, then the plan), says
`ready` when its connections stand, and begins when a line comes back: so whoever drives it reads the servers' CPU
seconds exactly around the load. At last it says `done` or `failed`, how long the rest is, and its outcome or why. When
standard input ends, all of them do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from io import BufferedRWPair
from typing import Final, NoReturn

import msgspec
import uvloop

from benchmarks.load import closed_loop, crowd, fan_out, hardy, open_loop
from benchmarks.load.plan import ClosedLoop, Crowd, FanOut, Hardy, OpenLoop, Plan

_CORE_BYTES: Final = 16  # of its number


def main() -> None:
    """Fork until standard input ends."""
    gc.freeze()  # what is there now is shared with all of them, as long as no collector touches it
    control = socket.socket(fileno=sys.stdin.fileno())
    alive: set[int] = set()
    while True:
        core, fds, _, _ = socket.recv_fds(control, _CORE_BYTES, 1)
        if not fds:
            break
        alive -= _ended()
        pid = os.fork()
        if not pid:
            _child(control, socket.socket(fileno=fds[0]), int(core))
        os.close(fds[0])
        alive.add(pid)
    for pid in alive:  # or has ended, and keeps its number until it is waited for
        os.kill(pid, signal.SIGKILL)


def _ended() -> set[int]:
    ended: set[int] = set()
    with contextlib.suppress(ChildProcessError):  # there is none at all
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.add(pid)
    return ended


def _child(control: socket.socket, driver: socket.socket, core: int) -> NoReturn:
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, control.fileno())  # standard input, whose number no other socket shall have
        os.close(nothing)
        os.sched_setaffinity(0, {core})
        with driver.makefile("rwb") as wire:
            _carry_out(wire)
        code = 0
    except (ConnectionError, EOFError):
        pass  # whoever drives it is gone, or wants no more of it
    finally:
        os._exit(code)  # nothing of the parent's is this process's to end


def _carry_out(wire: BufferedRWPair) -> None:
    _say(wire, b"%d\n" % os.getpid())
    size = int(_line(wire))
    plan: Plan = msgspec.msgpack.decode(wire.read(size), type=Plan)

    def wait_for_go() -> None:
        _say(wire, b"ready\n")
        _line(wire)  # blocks a loop on purpose: nothing happens before the word to go

    async def ready() -> None:
        wait_for_go()

    try:
        if isinstance(plan, OpenLoop):
            outcome = msgspec.msgpack.encode(open_loop.run(plan, wait_for_go))
        elif isinstance(plan, Hardy):
            outcome = msgspec.msgpack.encode(hardy.run(plan, wait_for_go))
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                outcome = runner.run(_run(plan, ready))
    except EOFError:
        raise
    except Exception as error:  # noqa: BLE001 - told, whatever it is
        if not isinstance(error, OSError):  # a defect of ours, then
            traceback.print_exc()
        why = f"{type(error).__name__}: {error}".encode()
        _say(wire, b"failed %d\n%b" % (len(why), why))
    else:
        _say(wire, b"done %d\n%b" % (len(outcome), outcome))


async def _run(plan: ClosedLoop | Crowd | FanOut, ready: Callable[[], Awaitable[None]]) -> bytes:
    if isinstance(plan, ClosedLoop):
        return msgspec.msgpack.encode(await closed_loop.run(plan, ready))
    if isinstance(plan, Crowd):
        return msgspec.msgpack.encode(await crowd.run(plan, ready))
    return msgspec.msgpack.encode(await fan_out.run(plan, ready))


def _say(wire: BufferedRWPair, data: bytes) -> None:
    wire.write(data)
    wire.flush()


def _line(wire: BufferedRWPair) -> bytes:
    line = wire.readline()
    if not line:
        raise EOFError
    return line


if __name__ == "__main__":
    main()
