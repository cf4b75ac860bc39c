"""A worker: an ordinary sidecar whose registry is its parent, and which ends when its parent does."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import MappingProxyType

from homeport.client.core.messages import KvEvents
from homeport.client.core.model import (
    Instance,
    InstanceKey,
    KeyValue,
    KvEvent,
    KvSnapshot,
    Lost,
    ServiceEvent,
    validate_name,
)
from homeport.client.randomness import own_rng
from homeport.sidecar import reports
from homeport.sidecar.channel import (
    Ask,
    BeginDrain,
    Channel,
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
    Told,
    ToWorker,
    Trouble,
    Unsubscribe,
    to_worker,
)
from homeport.sidecar.core import limits
from homeport.sidecar.core.route_table import PREFIX
from homeport.sidecar.sidecar import Sidecar

_log = logging.getLogger("homeport.sidecar")


async def work(fd: int) -> None:
    """Serve until the parent says stop or is gone; `fd` is this end of the channel to it."""
    worker = Worker()
    await asyncio.get_running_loop().create_unix_connection(lambda: worker.channel, sock=socket.socket(fileno=fd))
    await worker.run()


class Followed:
    """What the parent told of one service."""

    def __init__(self, service: str, now: Callable[[], float], closed: Callable[[str], None]) -> None:
        self.known = False
        self.live = False
        self.held = False
        self.revision = 0
        self.instances: Mapping[InstanceKey, Instance] = MappingProxyType({})
        self._service = service
        self._now = now
        self._closed = closed
        self._confirmed_at_s = now()
        self._listeners: list[Callable[[ServiceEvent], None]] = []

    def age_s(self) -> float:
        return 0.0 if self.live else self._now() - self._confirmed_at_s

    def recall(self, instances: Iterable[Instance], revision: int, age_s: float) -> None:
        raise AssertionError("the parent remembers, a worker does not")

    def listen(self, changed: Callable[[ServiceEvent], None]) -> Callable[[], None]:
        self._listeners.append(changed)
        return lambda: self._listeners.remove(changed)

    def close(self) -> None:
        self._closed(self._service)

    def told(self, news: Told) -> None:
        """Take in what the parent says."""
        self.live, self.held = news.live, news.held
        self._confirmed_at_s = self._now() - news.age_s
        if not (news.snapshot or news.changed or news.removed):
            return
        instances = {} if news.snapshot else dict(self.instances)
        for key in news.removed:
            instances.pop(key, None)
        for instance in news.changed:
            instances[instance.key] = instance
        self.instances = MappingProxyType(instances)
        self.known, self.revision = news.known, news.revision
        event = ServiceEvent(
            service=news.service,
            revision=news.revision,
            snapshot=news.snapshot,
            changed=news.changed,
            removed=news.removed,
        )
        for changed in list(self._listeners):
            changed(event)


class Documents:
    """The documents of routes that the parent told of, in the shape of the store that they come from."""

    def __init__(self) -> None:
        self._entries: dict[str, KeyValue] = {}
        self._news: asyncio.Queue[KvEvents] = asyncio.Queue()
        self._revision = 0

    def told(self, news: Routes) -> None:
        """Take in what the parent says."""
        key = (PREFIX + news.service).encode()
        self._revision = max(self._revision, news.revision)
        self._entries.pop(news.service, None)
        if news.document is not None:
            self._entries[news.service] = KeyValue(key, news.document, news.revision, news.revision, 1)
        self._news.put_nowait(KvEvents(self._revision, (KvEvent(key, news.document, news.revision),)))

    async def snapshot(self, _prefix: str, /) -> KvSnapshot:
        """All there is."""
        self._news = asyncio.Queue()
        return KvSnapshot(self._revision, tuple(self._entries.values()), "")

    async def watch(
        self, _key: str, /, *, prefix: bool, start_revision: int, store_id: str
    ) -> AsyncIterator[KvEvents | Lost]:
        """All that came since the snapshot."""
        while True:
            yield await self._news.get()


class Worker:
    """The sidecar, and the other end of what the parent says."""

    store_id = ""  # the parent's affair

    def __init__(self) -> None:
        self.channel = Channel(to_worker, self._received, self._ended)
        self.kv = Documents()
        self._followed: dict[str, Followed] = {}
        self._setup: asyncio.Future[Setup | None] = asyncio.get_running_loop().create_future()
        self._sidecar: Sidecar | None = None
        self._ejections: dict[str, int] = {}  # by service, as last told
        self._early: list[Ejected] = []  # what others had met before we were there
        self._rng = own_rng()  # for questions about balancing, which must not change its choices
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until told to stop."""
        setup = await self._setup
        if setup is None:
            return
        sockets = {name: [socket.socket(fileno=fd) for fd in fds] for name, fds in setup.sockets.items()}
        for inherited in [each for listening in sockets.values() for each in listening]:
            inherited.setblocking(False)
        async with Sidecar(self, setup.options, sockets=sockets, share=setup.share, name=setup.name) as sidecar:
            sidecar.watch_app(lambda: self.channel.send(Trouble()))
            self._sidecar = sidecar
            for news in self._early:
                self._agree(sidecar, news)
            self.channel.send(Ready())
            while not self._stop.is_set():
                self._tell_ejections(sidecar)
                try:
                    async with asyncio.timeout(limits.SWEEP_S):
                        await self._stop.wait()
                except TimeoutError:
                    pass

    def _tell_ejections(self, sidecar: Sidecar) -> None:
        """Tell of endpoints that were ejected here; found by counters, so that it costs the data path nothing."""
        if sidecar.outbound is None:
            return
        now = asyncio.get_running_loop().time()
        for service, cluster in sidecar.outbound.clusters.items():
            if cluster.ejections == self._ejections.get(service, 0):
                continue
            self._ejections[service] = cluster.ejections
            for key, endpoint in cluster.endpoints.items():
                if endpoint.ejected:  # those told before are told again, and no news to anybody
                    self.channel.send(Ejected(service, key, endpoint.ejected_until_s - now))

    def _agree(self, sidecar: Sidecar, news: Ejected) -> None:
        cluster = sidecar.outbound.clusters.get(news.service) if sidecar.outbound is not None else None
        if cluster is not None:
            cluster.agree(news.key, asyncio.get_running_loop().time(), news.lasts_s)

    def subscribe(self, service: str) -> Followed:
        """Follow a service through the parent.

        Raises:
            InvalidArgument: no service can have this name.
        """
        validate_name("service", service)
        followed = self._followed[service] = Followed(service, asyncio.get_running_loop().time, self._forget)
        self.channel.send(Subscribe(service))
        return followed

    def _forget(self, service: str) -> None:
        if self._followed.pop(service, None) is not None:
            self.channel.send(Unsubscribe(service))

    def _ended(self) -> None:
        self._stop.set()
        if not self._setup.done():
            self._setup.set_result(None)

    def _received(self, message: ToWorker) -> None:
        match message:
            case Setup():
                for each in message.documents:
                    self.kv.told(each)
                self._setup.set_result(message)
            case Told(service=service):
                followed = self._followed.get(service)
                if followed is not None:
                    followed.told(message)
            case Routes():
                self.kv.told(message)
            case Stop():
                self._ended()
            case Ejected() if self._sidecar is None:
                self._early.append(message)
            case _ if self._sidecar is None:
                _log.error("the parent said %s before it could be done", type(message).__name__)
            case Reconfigure(options=options):
                self._sidecar.reconfigure(options)
            case Ejected():
                self._agree(self._sidecar, message)
            case BeginDrain():
                self._sidecar.begin_drain()
            case Drain():
                task = asyncio.ensure_future(self._drain(self._sidecar, message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case Ask(number=number, explain=explain):
                from homeport.sidecar.metrics import metrics  # only where somebody asks: its library is not small

                sidecar = self._sidecar
                self.channel.send(
                    Report(
                        number,
                        reports.clusters(sidecar),
                        reports.stats(sidecar),
                        reports.routes(sidecar),
                        reports.explain(sidecar, explain, self._rng) if explain is not None else None,
                        metrics(sidecar),
                    )
                )

    async def _drain(self, sidecar: Sidecar, how: Drain) -> None:
        leave = sidecar.retire if how.retire else sidecar.drain
        self.channel.send(Drained(how.number, await leave(how.timeout_s)))
