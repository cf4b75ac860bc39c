"""When the application is looked at, and what the looks make of its status."""

from __future__ import annotations

import asyncio

from homeport.client.core.errors import Unavailable
from homeport.client.core.model import Status
from homeport.mesh.testing import running_loop, virtual_time
from homeport.sidecar import AppWatch
from homeport.sidecar.core.app_health import EVIDENCE_GAP_S, RECHECK_S, AppHealth


def test_an_app_that_fails_two_looks_is_critical_and_two_good_ones_bring_it_back() -> None:
    health = AppHealth(0.0, interval_s=5.0)
    assert not health.looked(False, 5.0)
    assert health.due_s == 5.0 + RECHECK_S
    assert health.looked(False, 5.5)
    statuses = [health.status]
    assert not health.looked(True, 10.0)
    assert health.looked(True, 10.5)
    assert [*statuses, health.status] == ["critical", "passing"]


def test_one_failed_look_between_good_ones_changes_nothing() -> None:
    health = AppHealth(0.0, interval_s=5.0)
    for now in range(1, 40):
        assert not health.looked(now % 2 == 0, float(now))


def test_failed_requests_bring_the_next_look_forward_but_never_make_it_a_load() -> None:
    health = AppHealth(100.0, interval_s=5.0)
    assert health.due_s == 105.0
    health.evidence(101.0)
    assert health.due_s == 101.0
    health.looked(True, 101.0)
    for _ in range(1000):
        health.evidence(101.1)
    assert health.due_s == 101.0 + EVIDENCE_GAP_S
    assert health.status == "passing"


class App:
    """Well or not, as the test says; remembers when it was looked at and what was reported of it."""

    def __init__(self) -> None:
        self.wrong: str | None = None
        self.looks: list[float] = []
        self.reports: list[tuple[float, Status]] = []
        self.registry_is_there = True

    async def look(self) -> str | None:
        self.looks.append(running_loop().time())
        return self.wrong

    async def report(self, status: Status, _output: str) -> None:
        if not self.registry_is_there:
            raise Unavailable("nobody there")
        self.reports.append((running_loop().time(), status))


@virtual_time()
async def test_a_request_that_fails_makes_the_app_be_looked_at_at_once() -> None:
    app = App()
    watch = AppWatch(app.look, app.report, interval_s=60.0)
    watching = asyncio.create_task(watch.run())
    await asyncio.sleep(1.0)
    app.wrong = "no answer"
    began = running_loop().time()
    watch.evidence()
    await asyncio.sleep(2.0)
    assert app.looks[0] - began < 0.01
    (told,) = app.reports
    assert told[1] == "critical"
    assert told[0] - began < 2 * RECHECK_S
    watching.cancel()


@virtual_time()
async def test_what_the_registry_missed_is_told_again_until_it_has_heard() -> None:
    app = App()
    app.registry_is_there = False
    app.wrong = "no answer"
    watching = asyncio.create_task(AppWatch(app.look, app.report, interval_s=5.0).run())
    await asyncio.sleep(20.0)
    assert app.reports == []
    app.registry_is_there = True
    await asyncio.sleep(2.0)
    assert [status for _at, status in app.reports] == ["critical"]
    watching.cancel()


@virtual_time()
async def test_without_news_the_registry_hears_often_enough_for_a_check_of_a_day() -> None:
    app = App()
    watching = asyncio.create_task(AppWatch(app.look, app.report, interval_s=600.0).run())
    await asyncio.sleep(86_400.0)
    assert 20 <= len(app.reports) <= 24
    assert {status for _at, status in app.reports} == {"passing"}
    watching.cancel()
