"""The site's settings, read from the registry's KV store and followed while the service runs.

Values are JSON under `pictures/settings/`. A value that cannot be used is logged and the last good one stays; so does
everything already known when the registry is away or comes back empty: settings are added to, never lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final, Self

import msgspec

from homeport.client import Client, HomeportError, KvSnapshot, Lost
from homeport.client.core.backoff import Backoff

PREFIX: Final = "pictures/settings/"

log = logging.getLogger("homeport.demo.settings")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the site lets be changed while it runs."""

    page_size: int = 20  # photos in a feed
    results_max: int = 20  # photos in a search result
    photo_types: tuple[str, ...] = ("image/png", "image/jpeg")
    photo_bytes_max: int = 1024 * 1024

    def having(self, name: str, value: bytes) -> Settings:
        """Return these settings with one of them changed.

        Raises:
            ValueError: no such setting, or the value is not JSON of its type.
        """
        try:
            changed = {**msgspec.structs.asdict(self), name: msgspec.json.decode(value)}
            return msgspec.convert(changed, Settings, strict=True)
        except msgspec.MsgspecError as error:
            raise ValueError(f"setting {name!r}: {error}") from error

    def entries(self) -> dict[str, bytes]:
        """The keys and values that stand for these settings in the KV store."""
        return {PREFIX + name: msgspec.json.encode(value) for name, value in msgspec.structs.asdict(self).items()}


class SettingsFollower:
    """Keeps `now` at what the KV store says; `known` once it has been read. Use as an async context manager."""

    def __init__(self, client: Client) -> None:
        self.now = Settings()
        self.known = False
        self._client = client
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._client.start()
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._client.close()

    async def _follow(self) -> None:
        backoff = Backoff(random.Random(), cap_s=1.0)
        while True:
            try:
                read = await self._client.kv.snapshot(PREFIX)
                for entry in read.entries:
                    self._take(entry.key, entry.value)
                # A site without settings is one that is still being set up: not ready, and asked again.
                self.known = self.known or bool(read.entries)
                if self.known:
                    await self._watch_from(read)
                    backoff.reset()
            except HomeportError as error:
                log.info("settings not readable, keeping what is known: %s", error)
            await asyncio.sleep(backoff.next_s())

    async def _watch_from(self, read: KvSnapshot) -> None:
        """Return when something was lost, so that everything is read again."""
        changes = self._client.kv.watch(PREFIX, prefix=True, start_revision=read.revision + 1, store_id=read.store_id)
        async for change in changes:
            if isinstance(change, Lost):
                return
            for event in change.events:
                if event.value is not None:
                    self._take(event.key, event.value)

    def _take(self, key: bytes, value: bytes) -> None:
        try:
            self.now = self.now.having(key.decode(errors="replace").removeprefix(PREFIX), value)
        except ValueError as error:
            log.warning("%s; keeping the last good value", error)
