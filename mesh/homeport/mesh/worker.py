"""A worker of `homeport sidecar --workers N`, as a program: `python -m homeport.mesh.worker LOG_LEVEL FD`.

Nobody but a parent starts it: FD is this end of the channel to that parent, and it ends when the parent does.
"""

from __future__ import annotations

import asyncio
import sys

from homeport.mesh import heap
from homeport.mesh.commands.running import configure_logging, loop_factory
from homeport.sidecar.worker import work


def main() -> None:
    """Run it."""
    level, fd = sys.argv[1:]
    configure_logging(level)
    heap.keep()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(work(int(fd)))


if __name__ == "__main__":
    main()
