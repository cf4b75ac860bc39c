"""The decorator: how a coroutine function becomes a test, and what a run may not leave behind."""

from __future__ import annotations

import asyncio
import inspect
import pathlib
import unittest
from collections.abc import AsyncIterator

import pytest

from homeport.mesh.testing import DeadlockError, LeftBehindError, run_virtual, running_loop, virtual_now, virtual_time


@pytest.fixture(autouse=True)
def _no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOMEPORT_SEED", raising=False)


@virtual_time()
async def test_fixtures_reach_the_function(tmp_path: pathlib.Path) -> None:
    await asyncio.sleep(1)
    assert isinstance(tmp_path, pathlib.Path)


@pytest.mark.parametrize("number", [1, 2])
@virtual_time(seed=3)
async def test_parameters_reach_the_function(number: int) -> None:
    await asyncio.sleep(number)
    assert number in (1, 2)


class TestMethods:
    @virtual_time()
    async def test_methods_work(self) -> None:
        await asyncio.sleep(1)
        assert isinstance(self, TestMethods)


class TestUnittest(unittest.TestCase):
    @virtual_time()
    async def test_unittest_works(self) -> None:
        start = virtual_now()
        await asyncio.sleep(100)
        self.assertEqual(virtual_now(), start + 100)  # noqa: PT009 - this is unittest


def test_the_wrapper_is_a_plain_function_of_the_same_name_and_signature() -> None:
    @virtual_time()
    async def answer(number: int, *, other: str = "x") -> int:
        """Its documentation."""
        return number

    assert not inspect.iscoroutinefunction(answer)
    assert list(inspect.signature(answer).parameters) == ["number", "other"]
    assert (answer.__name__, answer.__doc__, answer(42)) == ("answer", "Its documentation.", 42)


def test_a_plain_function_cannot_be_decorated() -> None:
    def plain() -> None: ...

    with pytest.raises(TypeError, match="no coroutine function"):
        virtual_time()(plain)  # type: ignore[arg-type]


def test_a_failure_prints_its_seed_and_carries_it(capsys: pytest.CaptureFixture[str]) -> None:
    @virtual_time(seed=77)
    async def fail() -> None:
        await asyncio.sleep(3)
        raise ValueError("as planned")

    with pytest.raises(ValueError, match="as planned") as caught:
        fail()
    assert caught.value.__notes__ == ["virtual time: 3 s after the start; HOMEPORT_SEED=77 replays this run"]
    assert "HOMEPORT_SEED=77" in capsys.readouterr().err


def test_the_environment_overrides_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time(seed=1)
    async def draw() -> tuple[int, float]:
        return running_loop().seed, running_loop().rng.random()

    first = draw()
    assert draw() == first
    monkeypatch.setenv("HOMEPORT_SEED", "2")
    assert draw()[0] == 2
    assert draw() != first
    monkeypatch.setenv("HOMEPORT_SEED", "two")
    with pytest.raises(ValueError, match="HOMEPORT_SEED must be an integer, not 'two'"):
        draw()


def test_tasks_left_over_are_cancelled_and_may_clean_up() -> None:
    cleaned: list[float] = []

    async def linger() -> None:
        try:
            await asyncio.sleep(10_000)
        finally:
            await asyncio.sleep(5)
            cleaned.append(virtual_now())

    async def main() -> None:
        asyncio.create_task(linger())  # noqa: RUF006 - left over on purpose
        await asyncio.sleep(1)

    run_virtual(main())
    assert cleaned == [1_000_003 + 6]


def test_a_task_that_refuses_to_end_fails_the_run() -> None:
    async def refuse() -> None:
        while True:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        asyncio.create_task(refuse(), name="stubborn")  # noqa: RUF006 - left over on purpose
        await asyncio.sleep(1)

    with pytest.raises(LeftBehindError, match=r"(?s)stubborn.*would not end"):
        run_virtual(main())


def test_a_task_that_fails_when_cancelled_fails_the_run() -> None:
    async def break_down() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            raise ValueError("broke down")

    async def main() -> None:
        asyncio.create_task(break_down())  # noqa: RUF006 - left over on purpose
        await asyncio.sleep(1)

    with pytest.raises(LeftBehindError, match="broke down"):
        run_virtual(main())


def test_an_error_that_nobody_retrieved_fails_the_run() -> None:
    async def fail() -> None:
        raise ValueError("unheard")

    async def main() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(1)
        assert task.done()

    with pytest.raises(LeftBehindError, match="unheard"):
        run_virtual(main())


def test_an_error_that_was_retrieved_is_fine() -> None:
    async def fail() -> None:
        raise ValueError("heard")

    async def main() -> str:
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        return str(task.exception())

    assert run_virtual(main()) == "heard"


def test_a_future_that_failed_unheard_fails_the_run() -> None:
    async def main() -> None:
        asyncio.get_running_loop().create_future().set_exception(ValueError("unheard"))

    with pytest.raises(LeftBehindError, match="unheard"):
        run_virtual(main())


def test_a_callback_that_raises_fails_the_run() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(int, "not a number")
        await asyncio.sleep(1)

    with pytest.raises(LeftBehindError, match="invalid literal"):
        run_virtual(main())


def test_a_deadlock_tells_of_the_callback_that_caused_it() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(int, "not a number")
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError) as caught:
        run_virtual(main())
    assert any("invalid literal" in note for note in caught.value.__notes__)


def test_asynchronous_generators_are_closed() -> None:
    closed: list[bool] = []

    async def count() -> AsyncIterator[int]:
        try:
            for number in range(10):
                yield number
        finally:
            await asyncio.sleep(1)
            closed.append(True)

    counting = count()

    async def main() -> None:
        assert await anext(counting) == 0

    run_virtual(main())
    assert closed == [True]


async def test_virtual_time_does_not_run_inside_a_running_loop() -> None:
    async def main() -> None: ...

    with pytest.raises(RuntimeError, match="inside a running event loop"):
        run_virtual(main())


async def test_real_time_is_not_mistaken_for_virtual_time() -> None:
    with pytest.raises(RuntimeError, match="real time"):
        virtual_now()
