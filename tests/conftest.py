"""What every test may use: waiting for something to become true, without sleeping through it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.ports import free_port

Eventually = Callable[..., Awaitable[None]]

PATIENCE_S = 30.0  # only a failure waits that long, and a busy machine is none

# How long an example takes says something about the machine, not about us.
settings.register_profile("homeport", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("homeport")


@pytest.fixture
def eventually() -> Eventually:
    """`await eventually(condition)`: return when the condition holds, fail when it has not in time."""

    async def wait(condition: Callable[[], object], within_s: float = PATIENCE_S) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while not condition():
            assert loop.time() < deadline, f"not true within {within_s} s"
            turn = asyncio.Event()
            loop.call_later(0.005, turn.set)
            await turn.wait()

    return wait


pytest_plugins = ["pytester"]  # for tests/kit, to run pytest in pytest; only an outermost conftest may ask for it


def pytest_configure() -> None:
    """What is started in the background ignores Ctrl-C, and so would all that it starts and interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything under tests/peers talks to a foreign client or server."""
    for item in items:
        if "peers" in item.path.parts:
            item.add_marker(pytest.mark.peers)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where peers are required, a test that skips for want of one has failed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("HOMEPORT_REQUIRE") == "peers":
        report.outcome = "failed"
        report.longrepr = f"skipped although HOMEPORT_REQUIRE=peers: {call.excinfo.value if call.excinfo else ''}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole file that skips itself, in the tier that is about peers."""
    report = yield
    asked_for = "not peers" not in (collector.config.getoption("markexpr") or "not peers")
    if report.skipped and asked_for and os.environ.get("HOMEPORT_REQUIRE") == "peers":
        report.outcome = "failed"
        report.longrepr = f"skipped although HOMEPORT_REQUIRE=peers: {report.longrepr}"
    return report


@pytest.fixture
def unused_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    return free_port()
