"""A generator process: `python -m benchmarks.load.process`; its plan on stdin, what it did on stdout.

It says `ready` when its connections stand, and begins when a line comes back: so whoever drives it reads the servers'
CPU seconds exactly around the load.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvloop

from benchmarks.load import closed_loop, crowd, fan_out, hardy, open_loop
from benchmarks.load.plan import ClosedLoop, Crowd, FanOut, Hardy, OpenLoop, Plan


def _wait_for_go() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.buffer.readline()  # blocks the loop on purpose: nothing happens before the word to go


async def _ready() -> None:
    _wait_for_go()


async def _run(plan: ClosedLoop | Crowd | FanOut) -> bytes:
    if isinstance(plan, ClosedLoop):
        return msgspec.json.encode(await closed_loop.run(plan, _ready))
    if isinstance(plan, Crowd):
        return msgspec.json.encode(await crowd.run(plan, _ready))
    return msgspec.json.encode(await fan_out.run(plan, _ready))


def main() -> int:
    """Carry out the plan on stdin: its length in bytes on a line, then the plan."""
    size = int(sys.stdin.buffer.readline())
    plan: Plan = msgspec.msgpack.decode(sys.stdin.buffer.read(size), type=Plan)
    try:
        if isinstance(plan, OpenLoop):
            outcome = msgspec.json.encode(open_loop.run(plan, _wait_for_go))
        elif isinstance(plan, Hardy):
            outcome = msgspec.json.encode(hardy.run(plan, _wait_for_go))
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                outcome = runner.run(_run(plan))
        print(outcome.decode(), flush=True)
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
