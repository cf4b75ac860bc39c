"""The generator of fixed rates: everything that is due is asked, and waiting for a busy server counts."""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.load import driver, hardy, open_loop
from benchmarks.load.plan import Hardy, OpenLoop
from benchmarks.servers import accepts, free_port
from benchmarks.spread import percentile
from benchmarks.stage import Stage

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
STALL_S = 0.3


def test_all_that_is_due_is_asked_and_answered(tmp_path: Path) -> None:
    port = free_port()
    with Stage("open-loop", work_dir=tmp_path) as stage:
        command = [sys.executable, "-m", "benchmarks.contenders.body_sink", str(port)]
        with stage.server("sink", command, accepts(port)) as sink:
            plan = OpenLoop(port=port, rate=500, connections=4, duration_s=0.5, host="orders", body_bytes=70_000)
            turn = driver.open_loop(plan, stage.generators, [sink.pid])
    assert 0 < turn.figures["p50"] <= turn.figures["p90"] <= turn.figures["p99"]


def test_requests_that_wait_behind_a_stalled_answer_count_their_waiting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                for number in range(101):
                    if not connection.recv(65_536):
                        return
                    if number == 1:  # the first that counts; the one before warms up
                        time.sleep(STALL_S)
                    connection.sendall(ANSWER)

        thread = threading.Thread(target=serve)
        thread.start()
        plan = OpenLoop(
            port=server.getsockname()[1], rate=100 / STALL_S, connections=1, duration_s=STALL_S, host="orders"
        )
        outcome = open_loop.run(plan, lambda: None)
        thread.join()
    assert outcome.operations == 100
    # All were due within the stall: on average they waited for half of it, where a closed loop would have seen one.
    assert percentile(outcome.latencies_us, 0.5) > STALL_S / 3 * 1e6


def test_a_hardy_load_counts_what_fails_and_goes_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answers in (3, 1_000):
                connection, _ = server.accept()
                with connection:
                    for _ in range(answers):
                        if not connection.recv(65_536):
                            return
                        connection.sendall(ANSWER)
                    connection.recv(65_536)  # the request that will not be answered

        thread = threading.Thread(target=serve)
        thread.start()
        load = OpenLoop(port=server.getsockname()[1], rate=20, connections=1, duration_s=1.0, host="orders")
        outcome = hardy.run(Hardy(load=load, patience_s=5.0), lambda: None)
        thread.join()
    assert (outcome.answered, len(outcome.failed_at_s)) == (19, 1)


def test_a_request_that_hangs_keeps_no_other_from_being_asked_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            hanging, _ = server.accept()
            with hanging:
                answering, _ = server.accept()
                with answering:
                    while answering.recv(65_536):
                        answering.sendall(ANSWER)

        thread = threading.Thread(target=serve)
        thread.start()
        load = OpenLoop(port=server.getsockname()[1], rate=20, connections=1, duration_s=1.0, host="orders")
        outcome = hardy.run(Hardy(load=load, patience_s=2.0), lambda: None)
        thread.join()
    assert (outcome.answered, len(outcome.failed_at_s)) == (19, 1)
    assert outcome.slowest_s < 1.0, "the others waited for nobody"
