"""Apps that the tests run under `homeport run`, and what they ask of them and of the registry."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.ports import free_port

if TYPE_CHECKING:  # at run time pytest alone knows conftest
    from tests.mesh_cli.conftest import Processes

DEADLINE_S = 30

# An app that says what it was given, answers every GET with its own name but /never, and ends with code 7 when told to.
APP = """
import http.server, os, signal, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/never":
            print("asked", flush=True)
            threading.Event().wait()
        body = b"app here"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
print("ready", os.getpid(), os.environ["HTTP_PROXY"], os.environ["HOMEPORT_INBOUND"], flush=True)
server.serve_forever()
"""


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Ask until it is so."""
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, f"never: {what}"


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended but was not yet reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class Run:
    """One `homeport run` of the app above."""

    def __init__(self, homeport: Processes, *options: str, command: list[str] | None = None) -> None:
        self.homeport = homeport
        self.process = homeport.start(
            *("run", "--name", "orders", "--id", "orders-1", "--port", str(free_port())),
            *("--outbound", "127.0.0.1:0", "--inbound", "127.0.0.1:0", "--admin", "off", "--check-interval", "0.2"),
            *options,
            "--",
            *(command or [sys.executable, "-c", APP]),
        )

    def ready(self) -> tuple[int, str, str]:
        """The app's process id, its proxy and its inbound address, once it runs."""
        _word, pid, proxy, inbound = self.homeport.line_with(self.process, "ready ").split()
        return int(pid), proxy, inbound


def registered(homeport: Processes) -> list[dict[str, object]]:
    """All that stand now. In this process: one of its own takes longer to start than an app is being drained."""
    found: list[dict[str, object]] = json.loads(homeport.quick("instances", "orders", "--json", codes=(0, 1)))
    return found
