"""A sidecar of several processes: the parent holds sockets, registry and signals, and workers carry the traffic.

Strategy: each worker has listening sockets of its own on the same port (SO_REUSEPORT), among which the kernel spreads
connections. The parent keeps them all, so that the successor of a worker that died inherits its sockets with whoever
waits in their backlog. There is one subscription per service for all workers; what it brings is encoded once and told
to those that asked. Limits are divided, reports are added up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.randomness import own_rng
from homeport.sidecar.channel import (
    Ask,
    BeginDrain,
    Drain,
    Drained,
    Ejected,
    Ready,
    Reconfigure,
    Report,
    Routes,
    Setup,
    Stop,
    Subscribe,
    ToParent,
    Trouble,
    Unsubscribe,
    encode,
)
from homeport.sidecar.core import limits as fixed
from homeport.sidecar.core import sums
from homeport.sidecar.core.explain_routes import Question
from homeport.sidecar.fan_out import FanOut
from homeport.sidecar.lifecycle import Registered, serve_app
from homeport.sidecar.options import DEFAULT, RELOADED, Given, Options
from homeport.sidecar.services import Discovery
from homeport.sidecar.sockets import address_of, bind, dealt
from homeport.sidecar.worker_process import WorkerProcess

if TYPE_CHECKING:
    from aiohttp import web

_log = logging.getLogger("homeport.sidecar")

WORKERS_MAX: Final = 64  # two listeners of each must fit into one handover
START_S: Final = 30.0  # for a worker to be there, on a machine that is busy
STOP_S: Final = 5.0  # for one to close its connections and exit
RESPAWN_S: Final = 1.0  # between two starts of the same worker, if it dies at once
STANDING_S: Final = 0.5  # how often workers are told whether the registry still confirms what they know
# Why several workers do not remember: whom a retry reaches is the kernel's choice, and each knows only its own.
REMEMBERING_ALONE: Final = (
    "remembering needs one worker: a retry comes on a new connection, which may reach another one, and that one would "
    "run the request again"
)
REPORT_S: Final = 2.0  # for a worker to report; one that cannot is left out


class Workers:
    """Several processes with the manners of one `Sidecar`; see there for the arguments that are the same.

    Args:
        count: How many workers.
        command: What starts one; the number of a file descriptor is added, for `homeport.sidecar.worker.work`.
    """

    def __init__(
        self,
        client: Discovery | None,
        options: Options = DEFAULT,
        *,
        count: int,
        command: Sequence[str],
        sockets: Mapping[str, Sequence[socket.socket]] | None = None,
        rng: Rng | None = None,
        **given: Unpack[Given],
    ) -> None:
        if not 1 <= count <= WORKERS_MAX:
            raise ValueError(f"{count} workers; allowed: 1 to {WORKERS_MAX}")
        self.options: Options = msgspec.structs.replace(options, **given)
        if count > 1 and self.options.remembering is not None:
            raise ValueError(REMEMBERING_ALONE)
        self.at: dict[str, str] = {}
        self._count = count
        self._command = tuple(command)
        self._addresses = self.options.addresses
        self._sockets = {name: list(each) for name, each in sockets.items()} if sockets is not None else {}
        self._rng: Rng = own_rng() if rng is None else rng
        self._name = ""
        self._workers: list[WorkerProcess] = []
        self._keeping: list[asyncio.Task[None]] = []
        routed = "outbound" in self._addresses or bool(self.options.http)
        self._fan_out = FanOut(client, self.options.state_file, self._rng, self._tell_routes if routed else None)
        self._admin: web.AppRunner | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._evidence: Callable[[], None] | None = None
        self._asked = 0
        self._draining = False
        self._closing = asyncio.Event()  # nobody is replaced any more
        self._stopping = False  # and whoever starts is to stop

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def unready(self) -> str:
        if self._draining:
            return "draining"
        return "" if self._present else f"none of {self._count} workers is up"

    @property
    def sockets(self) -> Mapping[str, Sequence[socket.socket]]:
        """The listening sockets, for a successor."""
        return self._sockets

    @property
    def pids(self) -> list[int]:
        """The processes that carry the traffic right now."""
        return [worker.process.pid for worker in self._workers if worker.process is not None and worker.ready.is_set()]

    async def start(self) -> None:
        """Bind every listener, start the workers, and return when all of them accept. On failure nothing stays open.

        Raises:
            OSError: an address cannot be bound, or a worker did not start.
        """
        loop = asyncio.get_running_loop()
        self._name = f"homeport-{self._rng.randrange(1 << 48):012x}"  # of all workers, for loops to be found
        try:
            for name, address in self._addresses.items():
                if name not in self._sockets:
                    self._sockets[name] = bind(address, self._count if name != "admin" else 1)
                self.at[name] = address_of(self._sockets[name][0])
            await self._fan_out.start()
            starting = [asyncio.Event() for _ in range(self._count)]
            self._keeping = [asyncio.create_task(self._keep(index, event)) for index, event in enumerate(starting)]
            async with asyncio.timeout(START_S):
                await asyncio.gather(*(event.wait() for event in starting))
            if "admin" in self._sockets:
                await self._serve_admin(self._sockets["admin"][0])
        except TimeoutError:
            await self.close()
            raise OSError(f"not all of {self._count} workers were there after {START_S:.0f} s") from None
        except BaseException:
            await self.close()
            raise
        self._timer = loop.call_later(STANDING_S, self._tell_standing, loop)

    def _tell_standing(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(STANDING_S, self._tell_standing, loop)
        self._fan_out.tell_standing()

    async def _serve_admin(self, bound: socket.socket) -> None:
        from aiohttp import web

        from homeport.sidecar import admin

        self._admin = web.AppRunner(admin.application(self), access_log=None, shutdown_timeout=admin.SHUTDOWN_S)
        await self._admin.setup()
        await web.SockSite(self._admin, bound).start()

    # --- workers ------------------------------------------------------------------------------------------------

    async def _keep(self, index: int, started: asyncio.Event) -> None:
        """Have a worker in this place, always."""
        loop = asyncio.get_running_loop()
        while not self._closing.is_set():
            began_s = loop.time()
            worker = WorkerProcess(index, self._received)
            self._workers.append(worker)
            try:
                await self._spawn(worker)
                if self._stopping:  # when it did not exist yet, nobody could tell it
                    worker.kill()
                ready = asyncio.ensure_future(worker.ready.wait())
                gone = asyncio.ensure_future(worker.gone.wait())
                await asyncio.wait([ready, gone], timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
                ready.cancel()
                if worker.ready.is_set():
                    started.set()
                else:
                    worker.kill()
                await gone
            except OSError as error:
                _log.error("worker %d could not be started: %s", index, error)
            finally:
                self._workers.remove(worker)
                self._fan_out.forget(worker)
                worker.kill()
                worker.ended()
            code = await worker.process.wait() if worker.process is not None else None
            if self._closing.is_set():
                return
            if worker.process is not None:
                _log.error("worker %d (process %d) ended with code %d", index, worker.process.pid, code)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(began_s + RESPAWN_S):
                    await self._closing.wait()

    async def _spawn(self, worker: WorkerProcess) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        hand: dict[str, list[int]] = {
            name: [each.fileno() for each in dealt(listening, self._count)[worker.index]]
            for name, listening in self._sockets.items()
            if name != "admin"
        }
        try:
            worker.process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                pass_fds=[theirs.fileno(), *(fd for fds in hand.values() for fd in fds)],
                start_new_session=True,  # a terminal's Ctrl-C is for the parent, who knows in which order to end
            )
            await asyncio.get_running_loop().create_unix_connection(lambda: worker.channel, sock=ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker.options = self.options
        worker.channel.send(
            Setup(self._name, hand, self.options.share(self._count), self._fan_out.documents(), self._count)
        )

    @property
    def _present(self) -> list[WorkerProcess]:
        """Those that have started."""
        return [worker for worker in self._workers if worker.ready.is_set()]

    def _tell_routes(self, routes: Routes) -> None:
        frame = encode(routes)
        for worker in self._workers:
            worker.channel.send_encoded(frame)

    def _received(self, worker: WorkerProcess, message: ToParent) -> None:
        match message:
            case Ready():
                worker.ready.set()
                if worker.options is not self.options:  # they have changed while it started
                    worker.channel.send(Reconfigure(self.options.share(self._count)))
                if self._draining:
                    worker.channel.send(BeginDrain())
                for how, _done in worker.drains.values():
                    worker.channel.send(how)
            case Subscribe(service=service):
                self._fan_out.subscribe(worker, service)
            case Unsubscribe(service=service):
                self._fan_out.unsubscribe(worker, service)
            case Ejected():
                self._fan_out.eject(worker, message, self._present)
            case Trouble():
                if self._evidence is not None:
                    self._evidence()
            case Drained(number=number, whole=whole):
                worker.drained(number, whole)
            case Report(number=number):
                report = worker.reports.pop(number, None)
                if report is not None and not report.done():
                    report.set_result(message)

    # --- the manners of a sidecar -------------------------------------------------------------------------------

    def reconfigure(self, options: Options) -> None:
        """See `Sidecar.reconfigure`."""
        self.options = msgspec.structs.replace(self.options, **{name: getattr(options, name) for name in RELOADED})
        for worker in self._present:
            worker.channel.send(Reconfigure(self.options.share(self._count)))

    def watch_app(self, evidence: Callable[[], None]) -> None:
        """Call `evidence` when requests to the application have failed."""
        self._evidence = evidence

    def begin_drain(self) -> None:
        """See `Sidecar.begin_drain`."""
        self._draining = True
        for worker in self._present:
            worker.channel.send(BeginDrain())

    async def drain(self, timeout_s: float = fixed.DRAIN_TIMEOUT_S) -> bool:
        """See `Sidecar.drain`."""
        self._draining = True
        return await self._drain_all(timeout_s)

    async def retire(self, timeout_s: float = fixed.RETIRE_TIMEOUT_S) -> bool:
        """See `Sidecar.retire`."""
        self._draining = True
        self._closing.set()  # a worker that ends now is not replaced
        if self._admin is not None:
            await self._admin.cleanup()
            self._admin = None
        self._fan_out.leave_file()
        self._close_sockets()
        return await self._drain_all(timeout_s, retire=True)

    async def _drain_all(self, timeout_s: float, *, retire: bool = False) -> bool:
        self._asked += 1
        how = Drain(self._asked, timeout_s, retire)
        return all(await asyncio.gather(*(worker.drain(how) for worker in self._workers if not worker.gone.is_set())))

    async def close(self) -> None:
        """Close everything; workers have `STOP_S` to exit. Idempotent."""
        self._stopping = True
        self._closing.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._admin is not None:
            await self._admin.cleanup()
            self._admin = None
        for worker in self._workers:
            if worker.ready.is_set():
                worker.channel.send(Stop())
            else:
                worker.kill()  # it carries nothing yet, and may not listen for long
        if self._keeping:
            _done, late = await asyncio.wait(self._keeping, timeout=STOP_S)
            for task in late:
                task.cancel()  # which kills the worker
            if late:
                await asyncio.wait(late)
            self._keeping.clear()
        await self._fan_out.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for bound in self._sockets.values():
            for each in bound:
                each.close()

    async def serve_app(
        self,
        registration: Registered,
        *,
        stopping: Awaitable[object],
        exited: Awaitable[object],
        stop_app: Callable[[], Awaitable[object]],
        drain_timeout_s: float = fixed.DRAIN_TIMEOUT_S,
    ) -> None:
        """See `homeport.sidecar.lifecycle.serve_app`."""
        await serve_app(
            self,
            registration,
            stopping=stopping,
            exited=exited,
            stop_app=stop_app,
            drain_timeout_s=drain_timeout_s,
        )

    # --- reports ------------------------------------------------------------------------------------------------

    async def clusters(self) -> list[dict[str, object]]:
        """As the admin port of one sidecar tells it, of all workers together."""
        summed: list[dict[str, object]] = sums.added([report.clusters for report in await self._reports()]) or []
        return summed

    async def stats(self) -> dict[str, object]:
        """The same for its counters."""
        summed: dict[str, Any] = sums.added([report.stats for report in await self._reports()]) or {}
        return {**summed, "workers": self.pids}

    async def routes(self) -> dict[str, object]:
        """The same for where names lead."""
        summed: dict[str, Any] = sums.added([report.routes for report in await self._reports()]) or {}
        return summed

    async def explain(self, question: Question) -> dict[str, object] | None:
        """The same for how a service is balanced: loads are added; each worker judges by itself, one speaks for all."""
        summed: dict[str, Any] | None = sums.added([report.explained for report in await self._reports(question)])
        return summed

    async def metrics(self) -> bytes:
        """The same for its metrics."""
        from homeport.sidecar.metrics import added_metrics

        return added_metrics([report.metrics for report in await self._reports()])

    async def _reports(self, explain: Question | None = None) -> list[Report]:
        """Ask every worker; those that do not answer in time are left out."""
        self._asked += 1
        loop = asyncio.get_running_loop()
        asked = {worker: loop.create_future() for worker in self._present}
        for worker, report in asked.items():
            worker.reports[self._asked] = report
            worker.channel.send(Ask(self._asked, explain))
        if not asked:
            return []
        done, late = await asyncio.wait(asked.values(), timeout=REPORT_S)
        for report in late:
            report.cancel()
        return [report.result() for report in done if not report.cancelled()]
