"""What coordination promises holds in hundreds of histories under faults, and what would break it is found."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from homeport.client import Client, Holding, HomeportError, Session
from homeport.client.coordination.lock import Lock
from homeport.client.coordination.place import Place
from homeport.client.leases import Lease
from homeport.mesh.testing import run_virtual
from tests.client.coordination.histories import FAULTS_S, PEACE_S, TTL_S, History, Violation
from tests.client.coordination.sites import Site

SEEDS = range(8)
LONG = range(1000, 1300)
BROKEN = range(40)  # seeds in which a broken variant has to be found


def lock(client: Client, session: Session | None) -> Holding:
    return client.lock("l", ttl_s=None if session else TTL_S, session=session)


def election(client: Client, session: Session | None) -> Holding:
    return client.election("e", ttl_s=None if session else TTL_S, session=session, value=b"me")


def semaphore(client: Client, session: Session | None) -> Holding:
    return client.semaphore("s", 2, ttl_s=None if session else TTL_S, session=session)


def claim(client: Client, session: Session | None) -> Holding:
    return client.queue("q", ttl_s=None if session else TTL_S, session=session).claim()


KINDS = {"lock": (lock, 1), "election": (election, 1), "semaphore": (semaphore, 2), "queue": (claim, 1)}


def history(seed: int, kind: str, data_dir: Path) -> History:
    """Run one; raise what it finds."""
    make, permits = KINDS[kind]

    async def run() -> History:
        async with Site(str(data_dir)) as site:
            found = History(site, make, permits=permits, sessions=seed % 2 == 1)
            producing = asyncio.ensure_future(_produce(site)) if kind == "queue" else None
            try:
                await found.run()
            finally:
                if producing is not None:
                    producing.cancel()
            return found

    return run_virtual(run(), seed=seed)


async def _produce(site: Site) -> None:
    queue = (await site.client(99)).queue("q")
    for number in range(int(2 * (FAULTS_S + PEACE_S))):
        with contextlib.suppress(HomeportError):  # whether it was put matters to nobody here
            await queue.put(b"%d" % number)
        await asyncio.sleep(0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_promise_holds_while_things_break(seed: int, kind: str, tmp_path: Path) -> None:
    found = history(seed, kind, tmp_path)
    assert found.acquired > 5


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", LONG)
def test_every_promise_holds_in_hundreds_of_histories(seed: int, kind: str, tmp_path: Path) -> None:
    history(seed, kind, tmp_path)


def test_histories_hold_what_they_are_about(tmp_path: Path) -> None:
    """Locks are lost in them, and late writers are refused: else they would show nothing."""
    runs = [history(seed, "lock", tmp_path / str(seed)) for seed in range(8)]
    assert sum(run.lost for run in runs) > 8
    assert sum(resource.refused for run in runs for resource in run.resources.values()) > 0


def found_in(tmp_path: Path, guarantee: str) -> int | None:
    """The first seed whose history says that this guarantee is broken."""
    for seed in BROKEN:
        try:
            history(seed, "lock", tmp_path / str(seed))
        except Violation as violation:
            if guarantee in str(violation):
                return seed
    return None


def test_a_deadline_that_counts_from_the_answer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Lease._acknowledged
    monkeypatch.setattr(Lease, "_acknowledged", lambda self, _sent_at: counted(self, self._time()))
    assert found_in(tmp_path, "would have believed") is not None


def test_a_token_that_is_used_again_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Lock._take

    async def reused(self: Lock, lease: Lease, wait: bool) -> int | None:
        token = await take(self, lease, wait)
        return token and token // 8

    monkeypatch.setattr(Lock, "_take", reused)
    assert found_in(tmp_path, "token") is not None


def test_a_holder_that_does_not_look_at_the_clock_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "_expired", lambda self: None)
    monkeypatch.setattr(Lease, "deadline", property(lambda self: self._deadline + 3600.0 * (not self.lost.is_set())))
    assert found_in(tmp_path, "would have believed") is not None


def test_a_waiter_that_does_not_wait_for_its_turn_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(self: Place) -> None:
        await self.before()

    monkeypatch.setattr(Place, "turn", at_once)
    assert found_in(tmp_path, "hold at one time") is not None
