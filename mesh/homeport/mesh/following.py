"""What commands keep an eye on: keys and services as the registry has them now, and when to act on a change.

Each tells `changed`, a plain event, and holds the newest state: whoever acts on changes is never behind by more than
one, however fast they come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from homeport.client import Client, HomeportError, Instance, KeyValue, Lost, RegistryError, Unavailable
from homeport.client.core.messages import KvGet

RETRY_S: Final = 1.0  # until a registry that cannot be reached is asked again
SERVICES_S: Final = 5.0  # between two looks at the list of services, which cannot be watched

_log = logging.getLogger("homeport.following")

Changed = Callable[[], None]


class Followed(Protocol):
    """One thing that is kept current until it is closed."""

    @property
    def known(self) -> bool:
        """Whether the registry has said how it is."""
        ...

    @property
    def error(self) -> HomeportError | None:
        """Why it is not followed any more: the registry refuses it."""
        ...

    def close(self) -> None: ...


class _Followed:
    """What is followed by a task of its own, which tries again until the registry refuses."""

    def __init__(self, changed: Changed) -> None:
        self.known = False
        self.error: HomeportError | None = None
        self._changed = changed
        self._news = asyncio.Event()
        self._task = asyncio.ensure_future(self._go_on())

    def close(self) -> None:
        self._task.cancel()

    async def wait_known(self) -> None:
        """Wait until the registry has said how it is.

        Raises:
            HomeportError: it refuses to.
        """
        while not self.known:
            if self.error is not None:
                raise self.error
            self._news.clear()
            await self._news.wait()

    async def _follow(self) -> None:
        """Follow until it has to begin anew."""
        raise NotImplementedError

    async def _go_on(self) -> None:
        try:
            while True:
                try:
                    await self._follow()
                except (Unavailable, RegistryError) as error:
                    _log.warning("%s: %s", self, error)
                    await asyncio.sleep(RETRY_S)
        except HomeportError as error:
            _log.error("%s: not followed any more: %s", self, error)
            self.error = error
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._changed()


class FollowedKeys(_Followed):
    """A key, or with `prefix` all that start with it. `entries` holds them by key."""

    def __init__(self, client: Client, key: str, changed: Changed, *, prefix: bool) -> None:
        self.entries: dict[bytes, KeyValue] = {}
        self._client = client
        self._key = key
        self._prefix = prefix
        super().__init__(changed)

    def __str__(self) -> str:
        return f"keys under {self._key!r}" if self._prefix else f"key {self._key!r}"

    async def _follow(self) -> None:
        """Read, then take in every change; return when some are lost, to read anew."""
        store_id = self._client.store_id
        if self._prefix:
            known = await self._client.kv.snapshot(self._key)
            store_id, revision, entries = known.store_id, known.revision, known.entries
        else:
            found = await self._client.call(KvGet(key=self._key.encode()))
            revision, entries = found.revision, (found.entry,) if found.entry else ()
        now = {entry.key: entry for entry in entries}
        if not self.known or now != self.entries:
            self.entries = now
            self.known = True
            self._tell()
        watch = self._client.kv.watch(self._key, prefix=self._prefix, start_revision=revision + 1, store_id=store_id)
        async for change in watch:
            if isinstance(change, Lost):
                return
            for event in change.events:
                if event.value is None:
                    self.entries.pop(event.key, None)
                else:
                    self.entries[event.key] = KeyValue(event.key, event.value, 0, event.revision, 0, 0)
            self._tell()


class FollowedServices(_Followed):
    """The list of services with their tags, looked at every few seconds."""

    def __init__(self, client: Client, changed: Changed) -> None:
        self.services: dict[str, tuple[str, ...]] = {}
        self._client = client
        super().__init__(changed)

    def __str__(self) -> str:
        return "the list of services"

    async def _follow(self) -> None:
        now = await self._client.services()
        if not self.known or now != self.services:
            self.services = now
            self.known = True
            self._tell()
        await asyncio.sleep(SERVICES_S)


class FollowedService:
    """The instances of a service."""

    def __init__(self, client: Client, name: str, changed: Changed) -> None:
        self._subscription = client.subscribe(name)
        self._stop = self._subscription.listen(lambda _event: changed())

    @property
    def known(self) -> bool:
        return self._subscription.known

    @property
    def error(self) -> HomeportError | None:
        return None  # whoever may not ask for this may ask for nothing, and is told so at once

    @property
    def instances(self) -> list[Instance]:
        """In the order of node and id."""
        return [instance for _, instance in sorted(self._subscription.instances.items())]

    async def wait_known(self) -> None:
        """Wait until the registry has said who is there.

        Raises:
            HomeportError: it refuses to.
        """
        while not await self._subscription.wait_known(RETRY_S):
            _log.warning("nothing is known of service %r yet", self._subscription.service)

    def close(self) -> None:
        self._stop()
        self._subscription.close()


async def settled(changed: asyncio.Event, quiet_s: float, quiet_s_max: float) -> None:
    """Wait for a change, and then until none has come for `quiet_s`, or the first one is `quiet_s_max` old.

    What comes in one go, a deployment say, is so acted upon once.
    """
    await changed.wait()
    loop = asyncio.get_running_loop()
    latest = loop.time() + quiet_s_max
    while True:
        changed.clear()
        try:
            async with asyncio.timeout(min(quiet_s, latest - loop.time())):
                await changed.wait()
        except TimeoutError:
            return
