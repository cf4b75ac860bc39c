"""Requests at a fixed rate that go on whatever fails or hangs, and say when something did; never tried twice.

A request that finds no idle connection opens one: what becomes of a load of which a part hangs is the servers' doing,
not that of a number of connections. A request that is refused, reset, answered with an error or not answered in time
has failed at the moment that its client knew.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable

from benchmarks.load.open_loop import Connection, request_of
from benchmarks.load.plan import Hardy, HardyOutcome


def run(plan: Hardy, ready: Callable[[], None]) -> HardyOutcome:
    """Carry out the plan; `ready` says so to whoever drives this process and returns when it shall begin."""
    request = request_of(plan.load)
    answers = select.epoll()  # `select` knows no more than 1,024
    idle = deque(Connection(plan.load.port) for _ in range(plan.load.connections))
    busy: dict[int, Connection] = {}
    failed_at_s: list[float] = []
    slow: list[tuple[float, float]] = []
    rate, total = plan.load.rate, int(plan.load.rate * plan.load.duration_s)
    ready()
    started_at = time.monotonic()
    asked = answered = 0

    def fail(connection: Connection) -> None:
        failed_at_s.append(time.monotonic())
        connection.sock.close()  # which `answers` forgets with that
        busy.pop(connection.fd, None)
        try:
            idle.append(Connection(plan.load.port))
        except OSError:
            idle.append(connection)  # closed: its next request fails at once, as it should

    while answered + len(failed_at_s) < total:
        now = time.monotonic()
        while asked < total and asked / rate <= now - started_at:
            due_s = started_at + asked / rate
            asked += 1
            try:
                connection = idle.pop() if idle else Connection(plan.load.port)
            except OSError:
                failed_at_s.append(time.monotonic())
                continue
            try:
                connection.ask(request, due_s)
            except OSError:
                fail(connection)
                continue
            busy[connection.fd] = connection
            answers.register(connection.fd, select.EPOLLIN)
        for connection in [each for each in busy.values() if now - each.due_s > plan.patience_s]:
            fail(connection)
        pause_s = max(0.0, started_at + asked / rate - time.monotonic()) if asked < total else 0.05
        for fd, _ in answers.poll(pause_s):
            connection = busy[fd]
            try:
                status = connection.read()
            except (OSError, ConnectionError):
                fail(connection)
                continue
            if status >= 400:
                fail(connection)
            elif status:
                answered += 1
                del busy[fd]
                answers.unregister(fd)
                idle.append(connection)
                now = time.monotonic()
                slow.append((now - connection.due_s, now))
    for connection in idle:
        connection.sock.close()
    answers.close()
    return HardyOutcome(answered=answered, failed_at_s=failed_at_s, slowest_s=max(slow, default=(0.0, 0.0))[0])
