"""The virtual loop: an asyncio event loop whose time jumps from one event to the next.

It is `asyncio.BaseEventLoop` with the selector taken out. Where the real loop would wait for the next timer, this one
moves its clock there; where the real loop would ask the kernel for input, it takes what the memory network
(`network.py`) has due. There are no threads and no sockets, so a run depends on nothing but its code and its seed:

* The clock moves only in `_jump` and `stall`, never while a callback runs.
* Each turn first takes what arrived from the wire, then the timers that are due, as a real loop polls before it looks
  at its timers. Arrivals of the same instant keep the order in which they were sent.
* Executor jobs run on the loop, after a drawn delay, out of sight of the running loop as in a thread.
* Tasks and futures hash by their number, not by their address, since `TaskGroup` and `asyncio.wait` iterate over sets.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import heapq
import itertools
import math
import random
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

from homeport.mesh.testing.errors import DeadlockError, NotVirtualError, StepLimitError
from homeport.mesh.testing.hosts import HOST, Host
from homeport.mesh.testing.network import Network

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH_S = 1_000_003.0
"""Where the clock begins: large and odd, to find out code that takes time for small, or round, or the date."""

STEPS_MAX = 20_000_000
"""Callbacks in one run. A simulated day of a busy cluster takes some millions; twenty is a minute of real time."""

TICK_S = 2.0**-20
"""Drawn delays are multiples of this (about a microsecond): exact in binary, so that sums of them compare exactly."""

JOB_DELAY_S = (0.00005, 0.002)
"""How long an executor job waits for its thread, and then takes: a short fsync, a small file."""

FAILED_MAX = 1_000
"""Failed tasks kept before those whose error was retrieved are let go."""

CANCELLED_TIMERS_MAX = 100
"""Cancelled timers kept in the heap before it is rebuilt without them; asyncio's own number."""


class VirtualTask(asyncio.Task[T]):
    """A task that hashes by its number and remembers the host it was made on."""

    def __init__(
        self,
        number: int,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        loop: asyncio.AbstractEventLoop,
        name: str | None,
        context: contextvars.Context | None,
    ) -> None:
        self.number = number  # before the base class registers the task in a set
        self.host: Host | None = HOST.get() if context is None else context.get(HOST)
        super().__init__(coro, loop=loop, name=name or f"task-{number}", context=context)

    def __hash__(self) -> int:
        return self.number


class VirtualFuture(asyncio.Future[T]):
    """A future that hashes by its number."""

    def __init__(self, number: int, *, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


def _refused(name: str, instead: str) -> Any:
    def refuse(self: VirtualLoop, *args: Any, **kwargs: Any) -> Any:
        raise NotVirtualError(f"loop.{name}() does not exist in virtual time: {instead}")

    refuse.__name__ = name
    return refuse


_SOCKETS = "there are no sockets; use create_server, create_connection or create_datagram_endpoint"
_PROCESSES = "there are no processes; test them in real time"
_SIGNALS = "there are no signals; call what the handler would call"
_TLS = "the memory network carries no TLS; test it in real time"


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop in virtual time.

    Args:
        seed: of `rng`, the one source of randomness: latencies, how streams are cut, delays of executor jobs.
        steps_max: callbacks after which the run ends with `StepLimitError`.

    Attributes:
        network: the memory network all connections of this loop run over, and its faults.
        rng: the generator; draw from it in tests, and the draws are part of the replay.
    """

    # What the base class keeps and its type stubs do not tell.
    _ready: collections.deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int
    _stopping: bool
    _thread_id: int | None

    def __init__(self, seed: int = 0, *, steps_max: int = STEPS_MAX) -> None:
        self._now = EPOCH_S
        super().__init__()
        self.seed = seed
        self.rng: random.Random = random.Random(seed)
        self.network: Network = Network(self)
        self.steps: int = 0
        self._steps_max = steps_max
        self._owner = threading.get_ident()
        self._numbers = itertools.count(1)
        self._arrivals: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._frozen_hosts = 0
        self._failed: list[asyncio.Task[Any]] = []
        self._queues: dict[int, tuple[Any, float, float]] = {}  # by executor: it (kept alive), last start, last end

    # --- time

    def time(self) -> float:
        """Virtual seconds, from `EPOCH_S` on."""
        return self._now

    def stall(self, seconds: float) -> None:
        """Let the whole process stand still: time passes, and nothing runs, as when its machine is suspended.

        Everything that fell due meanwhile happens at the end of the stall: what arrived first, then the timers.
        """
        if seconds < 0:
            raise ValueError(f"a stall cannot last {seconds} s")
        self._now += seconds

    def draw_delay(self, low_s: float, high_s: float, rng: random.Random | None = None) -> float:
        """A delay in seconds between the two bounds, a multiple of `TICK_S`."""
        return round((rng or self.rng).uniform(low_s, high_s) / TICK_S) * TICK_S

    def draw_number(self) -> int:
        """The next number of this run: for names and hashes that must not depend on addresses."""
        return next(self._numbers)

    def arrive_at(self, when: float, callback: Callable[..., object], *args: Any) -> None:
        """Let something happen at `when` outside of all processes, in a kernel or a thread: before the timers then due.

        The callback belongs to no host, and must not run code under test but by `call_soon` with its context. What
        arrives at the same instant does so in the order of these calls.
        """
        heapq.heappush(self._arrivals, (max(when, self._now), self.draw_number(), callback, args))

    # --- one turn of the loop

    def _run_once(self) -> None:
        self._drop_cancelled_timers()
        if not self._ready and not self._stopping:
            self._jump()
        while self._arrivals and self._arrivals[0][0] <= self._now:
            _, _, callback, args = heapq.heappop(self._arrivals)
            self.network.kernel.run(callback, *args)
        while self._scheduled and self._scheduled[0]._when <= self._now:  # type: ignore[attr-defined]
            timer = heapq.heappop(self._scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]
            self._ready.append(timer)
        for _ in range(len(self._ready)):
            if self.steps >= self._steps_max:
                raise StepLimitError(f"{self.steps} callbacks have run and there are more, {self._situation()}")
            handle = self._ready.popleft()
            if handle.cancelled():
                continue
            if self._frozen_hosts:
                host: Host | None = handle._context.get(HOST)  # type: ignore[attr-defined]
                if host is not None and host.frozen:
                    host.held.append(handle)
                    continue
            self.steps += 1
            handle._run()

    def _jump(self) -> None:
        when = self._arrivals[0][0] if self._arrivals else math.inf
        if self._scheduled:
            when = min(when, self._scheduled[0].when())
        if when == math.inf:
            raise DeadlockError(f"nothing is ready, no timer is set, nothing is on the wire, {self._situation()}")
        self._now = max(self._now, when)

    def _drop_cancelled_timers(self) -> None:
        heap = self._scheduled
        if self._timer_cancelled_count > max(CANCELLED_TIMERS_MAX, len(heap) // 2):
            for timer in heap:
                timer._scheduled = not timer.cancelled()  # type: ignore[attr-defined]
            heap[:] = [timer for timer in heap if not timer.cancelled()]
            heapq.heapify(heap)
            self._timer_cancelled_count = 0
        while heap and heap[0].cancelled():
            heapq.heappop(heap)._scheduled = False  # type: ignore[attr-defined]
            self._timer_cancelled_count -= 1

    def _situation(self) -> str:
        held = f"; frozen hosts: {', '.join(self.network.frozen())}" if self._frozen_hosts else ""
        tasks = "".join(f"\n  {task.get_name()}: {_waits_at(task)}" for task in self.pending_tasks())
        return f"{self._now - EPOCH_S:g} s after the start (seed {self.seed}){held}; pending tasks:{tasks or ' none'}"

    def allow_steps(self) -> None:
        """Allow `STEPS_MAX` further callbacks: what ends a run must not fail because the run went too far."""
        self._steps_max = self.steps + STEPS_MAX

    def pending_tasks(self) -> list[VirtualTask[Any]]:
        """The tasks that are not done, in the order they were made."""
        tasks = [task for task in asyncio.all_tasks(self) if isinstance(task, VirtualTask)]
        return sorted(tasks, key=lambda task: task.number)

    def freeze(self, host: Host) -> None:
        """Run nothing that belongs to this host until `thaw`. The network calls this; tests call the network."""
        if not host.frozen:
            host.frozen = True
            self._frozen_hosts += 1

    def thaw(self, host: Host) -> None:
        """Run what was held, in the order in which it fell due."""
        if host.frozen:
            host.frozen = False
            self._frozen_hosts -= 1
            self._ready.extend(host.held)
            host.held.clear()

    # --- what the base class leaves to its heirs, and what tasks and futures are

    def _note_failure(self, task: asyncio.Task[Any]) -> None:
        """Keep a failed task until somebody retrieves its error, instead of waiting for the garbage collector."""
        if task._log_traceback:
            self._failed.append(task)
            if len(self._failed) > FAILED_MAX:
                self._failed = [failed for failed in self._failed if failed._log_traceback]

    def unheard(self) -> list[tuple[asyncio.Task[Any], BaseException]]:
        """The tasks that failed, and whose error nobody retrieved up to now."""
        failed, self._failed = [task for task in self._failed if task._log_traceback], []
        return [(task, error) for task in failed if (error := task.exception()) is not None]

    def create_future(self) -> asyncio.Future[Any]:
        return VirtualFuture(self.draw_number(), loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        task = VirtualTask(self.draw_number(), coro, loop=self, name=name, context=context)
        task.add_done_callback(self._note_failure, context=self.network.kernel)
        return task

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector, so nobody needs waking."""

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As `call_soon`, from the loop's own thread only: another thread's timing could not be replayed.

        Raises:
            NotVirtualError: on another thread.
        """
        if threading.get_ident() != (self._thread_id or self._owner):
            raise NotVirtualError("another thread called a loop in virtual time; use run_in_executor, or real time")
        return super().call_soon_threadsafe(callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Run the job on the loop after a drawn delay; its result arrives after another.

        Cancelled before it starts, it never runs; cancelled later, it has run all the same. Jobs of the default
        executor may overtake each other; those of one given executor keep their order, and the executor itself is
        never used. A job must not use the loop, but for `call_soon_threadsafe`, as in a thread.
        """
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        delay_s = self.network.here().job_delay_s or JOB_DELAY_S
        start = self._now + self.draw_delay(*delay_s)
        end = start + self.draw_delay(*delay_s)
        if executor is not None:
            _, last_start, last_end = self._queues.get(id(executor), (executor, 0.0, 0.0))
            start, end = max(start, last_start), max(end, last_end)
            self._queues[id(executor)] = (executor, start, end)
        future = self.create_future()
        context = contextvars.copy_context()  # of the host that waits, and that may be frozen; not for the job to see

        def begin() -> None:
            self.call_soon(self._run_job, future, end, func, args, context=context)

        self.arrive_at(start, begin)
        return future

    def _run_job(
        self, future: asyncio.Future[Any], end: float, func: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        if future.cancelled():
            return
        asyncio._set_running_loop(None)
        try:
            result = contextvars.Context().run(func, *args)
        except BaseException as error:  # noqa: BLE001 - as in a thread, whatever the job raised is its result
            settle: Callable[[Any], None] = future.set_exception
            result = error
        else:
            settle = future.set_result
        finally:
            asyncio._set_running_loop(self)
        self.arrive_at(end, lambda: None if future.done() else settle(result))

    async def getaddrinfo(self, host: Any, port: Any, **hints: int) -> Any:
        """Answer for literal addresses, `localhost` and names given to `network.name`.

        Raises:
            socket.gaierror: for any other name.
        """
        return self.network.resolve(host, port, **hints)

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> tuple[str, str]:
        return str(sockaddr[0]), str(sockaddr[1])

    # --- the memory network

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        return await self.network.connect(protocol_factory, host, port, **options)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        return await self.network.listen(protocol_factory, host, port, **options)

    async def create_unix_connection(self, protocol_factory: Any, path: Any = None, **options: Any) -> Any:
        return await self.network.connect_unix(protocol_factory, path, **options)

    async def create_unix_server(self, protocol_factory: Any, path: Any = None, **options: Any) -> Any:
        return await self.network.listen_unix(protocol_factory, path, **options)

    async def create_datagram_endpoint(
        self, protocol_factory: Any, local_addr: Any = None, remote_addr: Any = None, **options: Any
    ) -> Any:
        return await self.network.open_datagrams(protocol_factory, local_addr, remote_addr, **options)

    # --- the real world, which is not here

    set_default_executor: Any = _refused("set_default_executor", "jobs run on the loop")
    set_task_factory: Any = _refused("set_task_factory", "tasks have to hash by their number")
    add_reader: Any = _refused("add_reader", _SOCKETS)
    remove_reader: Any = _refused("remove_reader", _SOCKETS)
    add_writer: Any = _refused("add_writer", _SOCKETS)
    remove_writer: Any = _refused("remove_writer", _SOCKETS)
    sock_recv: Any = _refused("sock_recv", _SOCKETS)
    sock_recv_into: Any = _refused("sock_recv_into", _SOCKETS)
    sock_recvfrom: Any = _refused("sock_recvfrom", _SOCKETS)
    sock_recvfrom_into: Any = _refused("sock_recvfrom_into", _SOCKETS)
    sock_sendall: Any = _refused("sock_sendall", _SOCKETS)
    sock_sendto: Any = _refused("sock_sendto", _SOCKETS)
    sock_sendfile: Any = _refused("sock_sendfile", _SOCKETS)
    sock_connect: Any = _refused("sock_connect", _SOCKETS)
    sock_accept: Any = _refused("sock_accept", _SOCKETS)
    connect_accepted_socket: Any = _refused("connect_accepted_socket", _SOCKETS)
    sendfile: Any = _refused("sendfile", "write what you read")
    start_tls: Any = _refused("start_tls", _TLS)
    subprocess_exec: Any = _refused("subprocess_exec", _PROCESSES)
    subprocess_shell: Any = _refused("subprocess_shell", _PROCESSES)
    connect_read_pipe: Any = _refused("connect_read_pipe", _PROCESSES)
    connect_write_pipe: Any = _refused("connect_write_pipe", _PROCESSES)
    add_signal_handler: Any = _refused("add_signal_handler", _SIGNALS)
    remove_signal_handler: Any = _refused("remove_signal_handler", _SIGNALS)


def _waits_at(task: asyncio.Task[Any]) -> str:
    """Where a task waits: its chain of coroutines, outermost first, each with its line."""
    places: list[str] = []
    awaited: Any = task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        places.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        awaited = getattr(awaited, "cr_await", None)
    return " > ".join(places) or repr(task)


def virtual_now() -> float:
    """The virtual time of the running loop in seconds.

    Raises:
        RuntimeError: no loop runs, or a loop in real time.
    """
    return running_loop().time()


def running_loop() -> VirtualLoop:
    """The running loop as a `VirtualLoop`.

    Raises:
        RuntimeError: no loop runs, or a loop in real time.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualLoop):
        raise RuntimeError("this code runs in real time; decorate it with @virtual_time()")
    return loop
