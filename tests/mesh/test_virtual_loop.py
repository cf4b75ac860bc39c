"""The virtual loop: what its clock, its executor and its limits promise."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from homeport.mesh.testing import (
    DeadlockError,
    NotVirtualError,
    StepLimitError,
    run_virtual,
    running_loop,
    virtual_now,
    virtual_time,
)

DAY_S = 86_400


@virtual_time()
async def test_time_jumps_to_the_next_timer_exactly() -> None:
    start = virtual_now()
    await asyncio.sleep(0)
    assert virtual_now() == start
    await asyncio.sleep(12_345.5)
    assert virtual_now() == start + 12_345.5


@virtual_time()
async def test_the_clock_starts_large_and_odd() -> None:
    assert virtual_now() > 1_000_000
    assert virtual_now() % 2 == 1


@virtual_time()
async def test_timers_fire_in_order_and_never_early() -> None:
    loop = running_loop()
    seen: list[tuple[float, float]] = []
    delays = [loop.rng.uniform(0, 1_000) for _ in range(500)]
    for delay in delays:
        when = loop.time() + delay
        loop.call_at(when, lambda due: seen.append((due, loop.time())), when)
    await asyncio.sleep(1_001)
    assert [when for when, _ in seen] == sorted(when for when, _ in seen)
    assert all(when == now for when, now in seen)
    assert len(seen) == 500


def test_a_day_of_one_second_timers_takes_seconds() -> None:
    async def tick() -> int:
        for _ in range(DAY_S):
            await asyncio.sleep(1)
        return int(virtual_now())

    before = time.process_time()  # which others on the machine do not lengthen
    assert run_virtual(tick()) == 1_000_003 + DAY_S
    assert time.process_time() - before < 30


@virtual_time()
async def test_cancelled_timers_do_not_hold_the_clock_or_the_memory() -> None:
    loop = running_loop()
    start = loop.time()
    for _ in range(10_000):
        loop.call_later(1_000, pytest.fail, "cancelled timers do not fire").cancel()
    loop.call_later(500, pytest.fail, "nor this one").cancel()
    await asyncio.sleep(1)
    assert loop.time() == start + 1
    assert len(loop._scheduled) < 1_000


def test_a_deadlock_names_who_waits_and_where() -> None:
    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(wait_for_ever(), name="the one who waits")
        await task

    with pytest.raises(DeadlockError, match=r"(?s)the one who waits: .*wait_for_ever:\d+ > Event\.wait:\d+"):
        run_virtual(main())


def test_a_run_that_never_lets_time_pass_hits_its_step_limit() -> None:
    async def spin() -> None:
        while True:  # noqa: ASYNC110 - spinning is the point
            await asyncio.sleep(0)

    with pytest.raises(StepLimitError, match=r"(?s)1000 callbacks.*0 s after the start.*spin"):
        run_virtual(spin(), steps_max=1_000)


@virtual_time()
async def test_a_stall_lets_time_pass_while_nothing_runs() -> None:
    loop, seen = running_loop(), []
    start = loop.time()
    loop.call_soon(lambda: seen.append(("soon", loop.time() - start)))
    loop.call_later(5, lambda: seen.append(("later", loop.time() - start)))
    loop.call_later(20, lambda: seen.append(("last", loop.time() - start)))
    loop.stall(10)
    assert seen == []
    assert loop.time() == start + 10
    await asyncio.sleep(30)
    assert seen == [("soon", 10.0), ("later", 10.0), ("last", 20.0)]


@virtual_time()
async def test_after_a_stall_input_is_handed_over_before_the_timers() -> None:
    loop = running_loop()
    seen: list[bytes] = []

    class Hear(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            seen.append(data)

    server = await loop.create_server(Hear, "127.0.0.1", 0)
    transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    loop.call_later(0.00001, seen.append, b"timer")  # due before the renewal can have arrived
    transport.write(b"!")
    loop.stall(10)
    await asyncio.sleep(1)
    assert seen == [b"!", b"timer"]
    transport.close()
    server.close()


def test_a_stall_cannot_go_back_in_time() -> None:
    async def main() -> None:
        running_loop().stall(-1)

    with pytest.raises(ValueError, match="cannot last"):
        run_virtual(main())


@virtual_time()
async def test_executor_jobs_take_time_and_return_their_result() -> None:
    start = virtual_now()
    assert await asyncio.to_thread(lambda: 6 * 7) == 42
    assert 0 < virtual_now() - start < 0.01


@virtual_time()
async def test_jobs_of_one_executor_keep_their_order() -> None:
    loop = running_loop()
    started: list[int] = []
    ended: list[int] = []

    def note(number: int, job: asyncio.Future[None]) -> None:
        ended.append(number)

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        jobs = [loop.run_in_executor(executor, started.append, number) for number in range(50)]
        for number, job in enumerate(jobs):
            job.add_done_callback(functools.partial(note, number))
        await asyncio.gather(*jobs)
        assert not executor._threads
    assert started == ended == list(range(50))


@virtual_time()
async def test_jobs_of_the_default_executor_overtake_each_other() -> None:
    loop = running_loop()
    started: list[int] = []
    await asyncio.gather(*[loop.run_in_executor(None, started.append, number) for number in range(50)])
    assert sorted(started) == list(range(50)) != started


@virtual_time()
async def test_a_job_cancelled_before_it_starts_never_runs() -> None:
    loop = running_loop()
    ran: list[int] = []
    loop.run_in_executor(None, ran.append, 1).cancel()
    await asyncio.sleep(1)
    assert ran == []


@virtual_time()
async def test_a_job_cancelled_after_it_started_has_run() -> None:
    loop, ran = running_loop(), asyncio.Event()
    job = loop.run_in_executor(None, lambda: loop.call_soon_threadsafe(ran.set))
    await ran.wait()
    assert not job.done()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job


@virtual_time()
async def test_a_job_does_not_see_the_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        await asyncio.to_thread(asyncio.get_running_loop)
    assert asyncio.get_running_loop() is running_loop()


@virtual_time()
async def test_another_thread_may_not_call_the_loop() -> None:
    loop, refused = running_loop(), []

    def call() -> None:
        with contextlib.suppress(NotVirtualError):
            loop.call_soon_threadsafe(pytest.fail)
            return
        refused.append(True)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert refused == [True]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("add_reader", (0, print)),
        ("sock_recv", (None, 1)),
        ("add_signal_handler", (signal.SIGTERM, print)),
        ("subprocess_exec", (asyncio.SubprocessProtocol, "true")),
        ("start_tls", (None, None, None)),
        ("connect_read_pipe", (asyncio.Protocol, None)),
    ],
)
@virtual_time()
async def test_the_real_world_is_refused_by_name(call: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(NotVirtualError, match=call):
        await getattr(running_loop(), call)(*arguments)


@virtual_time()
async def test_options_the_memory_network_cannot_honour_are_refused() -> None:
    loop = running_loop()
    with pytest.raises(NotVirtualError, match="ssl"):
        await loop.create_connection(asyncio.Protocol, "127.0.0.1", 1, ssl=True)
    with pytest.raises(NotVirtualError, match="reuse_port"):
        await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, reuse_port=True)
    with pytest.raises(NotVirtualError, match="sock"):
        await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=object())


TRACE = """
import asyncio, hashlib, os, sys
from homeport.mesh.testing import run_virtual, running_loop

async def main():
    loop, trace, ballast = running_loop(), [], []
    note = lambda *event: trace.append((loop.time(), *event))

    async def echo(reader, writer):
        try:
            while data := await reader.read(500):
                note("read", len(data))
                writer.write(data)
                await writer.drain()
        except ConnectionError as error:
            note(type(error).__name__)
        writer.close()

    async def call(number, address):
        try:
            reader, writer = await asyncio.open_connection(*address)
            for _ in range(5):
                writer.write(b"x" * loop.rng.randrange(1, 100_000))
                note(number, len(await reader.read(1_000)))
            await asyncio.sleep(loop.rng.random())
            if number == 7:
                raise ValueError
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            note(number, "cancelled")
            raise
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                ballast.append([bytes(size % 480) for size in os.urandom(64)])  # no address is as in another run
                group.create_task(call(number, server.sockets[0].getsockname()))
    except* ValueError:
        note("failed")
    jobs = {asyncio.ensure_future(asyncio.to_thread(note, "job", number)) for number in range(20)}
    done, _ = await asyncio.wait(jobs)
    for task in done:
        note(task.get_name())
    server.close()
    return trace

trace = run_virtual(main(), seed=int(sys.argv[1]))
assert len(trace) > 100, trace
print(hashlib.sha256(repr(trace).encode()).hexdigest())
"""


def test_a_seed_gives_the_same_trace_under_any_hash_seed() -> None:
    def trace(seed: int, hash_seed: int) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "HOMEPORT_SEED"}
        environment["PYTHONHASHSEED"] = str(hash_seed)
        command = [sys.executable, "-W", "error", "-c", TRACE, str(seed)]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    assert len({trace(1, hash_seed) for hash_seed in (0, 1, 4_242)}) == 1
    assert trace(1, 0) != trace(2, 0)
