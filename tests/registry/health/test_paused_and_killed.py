"""A real process, paused and killed: how soon the scheduler notices, on real sockets and each event loop."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import Callable

import pytest

from homeport.client.core.model import Check, Instance, InstanceKey
from homeport.registry.core.health import JITTER, Verdict
from homeport.registry.health import Prober, Scheduler

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pauses a process by SIGSTOP")

EVENT_S = 30.0
SLACK_S = 20.0  # of a busy machine
SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"fine")
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def _loops() -> list[Callable[[], asyncio.AbstractEventLoop]]:
    factories: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop]
    if sys.platform != "win32":
        import uvloop

        factories.append(uvloop.new_event_loop)
    return factories


@pytest.mark.parametrize("loop_factory", _loops(), ids=lambda factory: factory.__module__)
def test_a_paused_process_is_critical_in_time_and_a_killed_one_at_once(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_pause_and_kill())


async def _pause_and_kill() -> None:
    loop = asyncio.get_running_loop()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, stdout=asyncio.subprocess.PIPE)
    reports: asyncio.Queue[tuple[str, Verdict]] = asyncio.Queue()

    def report(_key: InstanceKey, _create_revision: int, name: str, verdict: Verdict) -> None:
        reports.put_nowait((name, verdict))

    async def next_report() -> tuple[str, Verdict]:
        return await asyncio.wait_for(reports.get(), EVENT_S)

    prober = Prober()
    scheduler = Scheduler(prober.probe, report, now=loop.time, rng=random.Random(1))
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), EVENT_S))
        check = Check(name="http", kind="http", url=f"http://127.0.0.1:{port}/", interval_s=0.3, timeout_s=1.0)
        instance = Instance(
            service="orders", id="a", address="127.0.0.1", port=port, checks=(check,), create_revision=2
        )
        scheduler.put(instance)
        assert (await next_report())[1].status == "passing"

        process.send_signal(signal.SIGSTOP)
        paused = loop.time()
        name, verdict = await next_report()
        assert (name, verdict.status, verdict.refused) == ("http", "critical", False)
        assert "timed out" in verdict.output
        # Runs follow each other by an interval or, when that is longer, by the timeout.
        bound_s = check.critical_after * (1 + JITTER) * max(check.interval_s, check.timeout_s) + check.timeout_s
        assert loop.time() - paused < bound_s + SLACK_S

        process.send_signal(signal.SIGCONT)
        assert (await next_report())[1].status == "passing"

        process.kill()
        await process.wait()
        scheduler.probe_now(instance.key)
        killed = loop.time()
        name, verdict = await next_report()
        assert (name, verdict.status, verdict.refused) == ("http", "critical", True)
        assert loop.time() - killed < check.interval_s + SLACK_S

        bare = Instance(service="orders", id="b", address="127.0.0.1", port=port, create_revision=3)
        scheduler.put(bare)
        scheduler.probe_now(bare.key)
        name, verdict = await next_report()
        assert (name, verdict.status, verdict.refused) == ("connect", "critical", True)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await scheduler.close()
        await prober.close()
