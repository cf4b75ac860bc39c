"""`homeport run` with apps that misbehave: wedged, dead at once, deaf, or asked for more than they take."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.mesh_cli.apps import DEADLINE_S, Run, alive, eventually, registered

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.mesh_cli.conftest import Processes, Serving

linux = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

# An app that writes down the signals it gets, in order, and leaves at the third.
LISTENER = """
import os, signal, socket, sys
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
count = 0
def heard(number, frame):
    global count
    count += 1
    print("heard", signal.Signals(number).name, flush=True)
    if count == 3:
        sys.exit(5)
for each in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
    signal.signal(each, heard)
print("ready", os.getpid(), "-", "-", flush=True)
while True:
    signal.pause()
"""


def statuses(homeport: Processes) -> list[object]:
    return [each["status"] for each in registered(homeport)]


@linux
def test_a_wedged_app_leaves_discovery_while_its_process_lives_and_comes_back(
    homeport: Processes, serving: Serving
) -> None:
    run = Run(homeport, "--check-path", "/")
    pid, _proxy, _inbound = run.ready()
    eventually(lambda: statuses(homeport) == ["passing"], "registered")
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: statuses(homeport) == ["critical"], "the wedged app is critical")
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: statuses(homeport) == ["passing"], "it is back")


def test_an_app_that_dies_at_once_is_never_registered_and_its_exit_code_is_ours(
    homeport: Processes, serving: Serving
) -> None:
    run = Run(homeport, command=[sys.executable, "-c", "raise SystemExit(3)"])
    assert run.process.wait(DEADLINE_S) == 3
    assert registered(homeport) == []


@linux
def test_signals_that_are_the_apps_business_are_passed_on(homeport: Processes, serving: Serving) -> None:
    run = Run(homeport, command=[sys.executable, "-c", LISTENER])
    run.ready()
    for number in (signal.SIGHUP, signal.SIGUSR1):
        run.process.send_signal(number)
        assert homeport.line(run.process) == f"heard {number.name}\n"
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGUSR2)
    assert homeport.line(run.process) == "heard SIGUSR2\n"
    assert run.process.wait(DEADLINE_S) == 5


@linux
def test_from_the_third_stop_signal_on_the_app_gets_each_of_them(homeport: Processes, serving: Serving) -> None:
    run = Run(homeport, command=[sys.executable, "-c", LISTENER])
    run.ready()
    eventually(lambda: bool(registered(homeport)), "registered")
    run.process.send_signal(signal.SIGTERM)
    eventually(lambda: [each["state"] for each in registered(homeport)] == ["draining"], "draining")
    run.process.send_signal(signal.SIGTERM)
    assert homeport.line(run.process) == "heard SIGTERM\n"
    for _ in range(2):
        run.process.send_signal(signal.SIGINT)
        assert homeport.line(run.process) == "heard SIGINT\n"
    assert run.process.wait(DEADLINE_S) == 5


def test_more_requests_than_the_app_takes_are_turned_away_as_not_delivered(
    homeport: Processes, serving: Serving
) -> None:
    run = Run(homeport, "--concurrency", "1")
    _pid, _proxy, inbound = run.ready()
    host, _, port = inbound.rpartition(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(b"GET /never HTTP/1.1\r\nHost: orders\r\n\r\n")
        assert homeport.line(run.process) == "asked\n"
        with pytest.raises(urllib.error.HTTPError) as turned_away:
            urllib.request.urlopen(f"http://{inbound}/", timeout=DEADLINE_S)
    with turned_away.value as answer:
        assert answer.status == 503
        assert answer.headers["x-homeport-response-flags"] == "UO"
        assert answer.headers["x-homeport-undelivered"] == "1"


@pytest.mark.long
def test_a_drain_lets_a_handler_of_ten_seconds_finish(homeport: Processes, serving: Serving) -> None:
    run = Run(homeport, command=[sys.executable, "-c", SLOW])
    _pid, _proxy, inbound = run.ready()
    eventually(lambda: bool(registered(homeport)), "registered")
    answers: list[bytes] = []

    def ask() -> None:
        with urllib.request.urlopen(f"http://{inbound}/", timeout=DEADLINE_S) as answer:
            answers.append(answer.read())

    asking = threading.Thread(target=ask)
    asking.start()
    assert homeport.line(run.process) == "asked\n"
    run.process.send_signal(signal.SIGTERM)
    asking.join(DEADLINE_S)
    assert answers == [b"after ten seconds"]
    assert run.process.wait(DEADLINE_S) == 7


SLOW = """
import http.server, os, signal, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("asked", flush=True)
        time.sleep(10)
        body = b"after ten seconds"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
print("ready", os.getpid(), "-", os.environ["HOMEPORT_INBOUND"], flush=True)
server.serve_forever()
"""
