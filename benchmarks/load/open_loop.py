"""Requests at a fixed rate, whatever the server does: latency counts from the moment a request was due.

A closed loop waits for a slow answer before it asks again, and so does not see what others would have met meanwhile
("coordinated omission"). Here a request that finds every connection busy waits in line, and its waiting counts. Plain
sockets and `select`, whose time-outs are exact to some 50 us; an event loop's clock steps by a millisecond, which is
more than what is measured.
"""

from __future__ import annotations

import re
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Final

from benchmarks.load.plan import OpenLoop, Outcome
from benchmarks.spread import histogram

_ANSWER_S: Final = 10.0  # after the last request was sent; who has not answered by then has failed
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_READ_BYTES: Final = 256 * 1024


class Connection:
    """One kept-alive connection with at most one request under way."""

    __slots__ = ("_answer", "_wanted", "due_s", "fd", "sock")

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = self.sock.fileno()
        self.due_s = 0.0
        self._answer = b""
        self._wanted = 0

    def ask(self, request: bytes, due_s: float) -> None:
        self.due_s = due_s
        self._answer = b""
        self._wanted = 0
        self.sock.sendall(request)

    def read(self) -> int:
        """Take in what came; the status once the answer is whole, 0 before.

        Raises:
            ConnectionError: it ended before.
        """
        data = self.sock.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("the server closed a connection under load")
        self._answer += data
        if not self._wanted:
            end = self._answer.find(b"\r\n\r\n")
            if end < 0:
                return 0
            length = _LENGTH.search(self._answer, 0, end + 2)
            self._wanted = end + 4 + (int(length[1]) if length else 0)
        return int(self._answer[9:12]) if len(self._answer) >= self._wanted else 0


def run(plan: OpenLoop, ready: Callable[[], None]) -> Outcome:
    """Carry out the plan; `ready` says so to whoever drives this process and returns when it shall begin.

    Raises:
        OSError: there is no connection, or it was lost.
    """
    connections = [Connection(plan.port) for _ in range(plan.connections)]
    request = request_of(plan)
    for connection in connections:  # opens the server's own connections, too, before anything counts
        connection.ask(request, 0.0)
        while not connection.read():
            pass
    idle = deque(connections)
    by_fd = {connection.sock.fileno(): connection for connection in connections}
    ready()
    latencies_s = array("d")
    failed, first_error = 0, b""
    total = int(plan.rate * plan.duration_s)
    waiting: deque[float] = deque()  # when each was due
    asked = 0
    cpu_at, started_at = time.process_time(), time.perf_counter()
    while len(latencies_s) < total:
        now = time.perf_counter() - started_at
        while asked < total and asked / plan.rate <= now:
            waiting.append(asked / plan.rate)
            asked += 1
        while waiting and idle:
            idle.pop().ask(request, waiting.popleft())
        now = time.perf_counter() - started_at
        if now > plan.duration_s + _ANSWER_S:
            raise TimeoutError(f"{total - len(latencies_s)} of {total} requests were not answered")
        pause_s = max(0.0, asked / plan.rate - now) if asked < total else 0.1
        for fd in select.select(list(by_fd), (), (), pause_s)[0]:
            connection = by_fd[fd]
            status = connection.read()
            if status:
                latencies_s.append(time.perf_counter() - started_at - connection.due_s)
                idle.append(connection)
                if status >= 400:
                    failed += 1
                    first_error = first_error or b"status %d" % status
    cpu_s, wall_s = time.process_time() - cpu_at, time.perf_counter() - started_at
    for connection in connections:
        connection.sock.close()
    return Outcome(
        operations=total,
        failed=failed,
        wall_s=wall_s,
        cpu_s=cpu_s,
        latencies_us=histogram(latency_s * 1e6 for latency_s in latencies_s),
        first_error=first_error.decode(),
    )


def request_of(plan: OpenLoop) -> bytes:
    """The bytes of one request."""
    method = "POST" if plan.body_bytes else "GET"
    lines = [f"{method} {plan.path} HTTP/1.1", f"Host: {plan.host}"]
    if plan.body_bytes:
        lines.append(f"Content-Length: {plan.body_bytes}")
    return "\r\n".join([*lines, "", ""]).encode() + b"x" * plan.body_bytes
