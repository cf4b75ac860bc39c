"""Follows the documents of routes in the registry's store, and tells of each as it changes.

Strategy: read all of them at one revision, then watch from there; whatever is lost on the way is read again. What was
told last stays in force while no registry answers. A registry that comes back with another history and without a
single document has lost its data, as likely as not: what is known stays until somebody writes one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from homeport.client.core.backoff import Backoff, Rng
from homeport.client.core.errors import HomeportError
from homeport.client.core.limits import RECALL_S
from homeport.client.core.messages import KvEvents
from homeport.client.core.model import KvSnapshot, Lost
from homeport.sidecar.core.route_table import PREFIX, SERVICES_MAX
from homeport.sidecar.core.routing import DOCUMENT_BYTES_MAX

_log = logging.getLogger("homeport.sidecar")


class Keys(Protocol):
    """What is needed of `homeport.client.Kv`."""

    async def snapshot(self, prefix: str, /) -> KvSnapshot: ...
    def watch(
        self, key: str, /, *, prefix: bool, start_revision: int, store_id: str
    ) -> AsyncIterator[KvEvents | Lost]: ...


class RouteWatch:
    """One watch.

    Args:
        told: Called with a service, its document (None: it has none any more) and the revision of that.
    """

    def __init__(self, keys: Keys, rng: Rng, told: Callable[[str, bytes | None, int], None]) -> None:
        self.documents: dict[str, tuple[bytes, int]] = {}  # as last told, and the revision
        self._keys = keys
        self._told = told
        self._backoff = Backoff(rng)
        self._store_id = ""
        self._wait_until_s = 0.0
        self._read = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def recall(self, documents: Mapping[str, bytes], store_id: str) -> None:
        """Begin with what an earlier process knew."""
        self._store_id = store_id
        for service, document in documents.items():
            self._tell(service, document, 0)

    def start(self) -> None:
        """Follow from now on. Idempotent."""
        if self._task is None:
            self._wait_until_s = asyncio.get_running_loop().time() + RECALL_S
            self._task = asyncio.create_task(self._follow(), name="following routes")

    async def read(self) -> None:
        """Return when all was read once, or `RECALL_S` after the start while no registry answers."""
        try:
            async with asyncio.timeout_at(self._wait_until_s):
                await self._read.wait()
        except TimeoutError:
            level = logging.WARNING if self.documents else logging.INFO
            _log.log(level, "no registry says how to route: using the routes of %d services", len(self.documents))

    def stop(self) -> None:
        """Follow no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _follow(self) -> None:
        while True:
            try:
                start = self._take(await self._keys.snapshot(PREFIX))
                self._read.set()
                self._backoff.reset()
                async for news in self._keys.watch(PREFIX, prefix=True, start_revision=start, store_id=self._store_id):
                    if isinstance(news, Lost):
                        break  # read all of it again
                    for event in news.events:
                        self._changed(event.key, event.value, event.revision)
            except HomeportError as error:
                _log.info("routes cannot be followed for now: %s", error)
                await asyncio.sleep(self._backoff.next_s())

    def _take(self, now: KvSnapshot) -> int:
        """Take in all there is; return the revision to watch from."""
        bereft = not now.entries and bool(self.documents) and now.store_id != self._store_id
        self._store_id = now.store_id
        if bereft:
            _log.warning("a registry without its data answers: keeping the routes of %d services", len(self.documents))
            return now.revision + 1
        names = {PREFIX + service for service in self.documents} - {
            entry.key.decode(errors="replace") for entry in now.entries
        }
        for name in sorted(names):
            self._changed(name.encode(), None, now.revision)
        for entry in now.entries:
            self._changed(entry.key, entry.value, entry.mod_revision)
        return now.revision + 1

    def _changed(self, key: bytes, value: bytes | None, revision: int) -> None:
        try:
            service = key.decode().removeprefix(PREFIX)
        except UnicodeDecodeError:
            service = ""
        if not service or service != service.lower():  # or two keys would speak of one service
            _log.error("the key %r holds routes of no service; allowed: a service's name in lower case", key[:200])
            return
        self._tell(service, value, revision)

    def _tell(self, service: str, document: bytes | None, revision: int) -> None:
        if document is None:
            self.documents.pop(service, None)
        elif service in self.documents or len(self.documents) < SERVICES_MAX:
            document = document[: DOCUMENT_BYTES_MAX + 1]  # enough to be refused
            self.documents[service] = document, revision
        else:
            _log.error("the routes of %r are left out: %d services have some already", service, SERVICES_MAX)
            return
        self._told(service, document, revision)
