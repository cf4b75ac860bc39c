"""Keeps the last known endpoints on disk, so that who starts while no registry answers still finds everyone.

Sidecars have such a file, and resolvers that are told where.

Written a moment after a change and now and then without one, for the age; to a file beside, synced and then renamed, so
that there is always one whole file. A file that cannot be used is said aloud and replaced by the next one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from homeport.client.core import limits, snapshot
from homeport.client.core.model import Instance, InstanceKey, ServiceEvent
from homeport.client.core.snapshot import Known, Snapshot, SnapshotError

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("homeport.client")

SAVE_DELAY_S: Final = 1.0  # after a change: a rolling restart is a few writes, not hundreds
SAVE_EVERY_S: Final = 60.0  # without one: the age of what a crash leaves behind is known to the minute


class LastKnown:
    """One file of endpoints.

    Args:
        path: Where; its directory is made if need be.
        taken: Returns what is known now, given the wall clock's time.
    """

    def __init__(self, path: Path, taken: Callable[[float], Snapshot]) -> None:
        self.path = path
        self._taken = taken
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._writing: asyncio.Future[None] | None = None

    def load(self) -> Snapshot | None:
        """What the file holds, or None; why a file that is there cannot be used goes to the log."""
        try:
            with self.path.open("rb") as file:
                data = file.read(snapshot.SNAPSHOT_BYTES_MAX + len(snapshot.FORMAT) + 5)
            return snapshot.decode(data, time.time())
        except FileNotFoundError:
            return None
        except (OSError, SnapshotError) as error:
            _log.error("the last known endpoints in %s are of no use: %s", self.path, error)
            return None

    def start(self) -> None:
        """Keep the file up to date from now on."""
        self._task = asyncio.create_task(self._keep(), name="keeping the last known endpoints")

    def changed(self) -> None:
        """Something is known that the file does not hold."""
        self._changed.set()

    def stop(self) -> None:
        """Write no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def close(self) -> None:
        """Write once more, and stop."""
        if self._task is not None:
            self.stop()
            if self._writing is not None:  # a thread does not end with the task that has sent it
                await asyncio.gather(self._writing, return_exceptions=True)
            await self._save()

    async def _keep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(SAVE_EVERY_S):
                    await self._changed.wait()
                await asyncio.sleep(SAVE_DELAY_S)
            except TimeoutError:
                pass
            self._changed.clear()
            await self._save()

    async def _save(self) -> None:
        taken = self._taken(time.time())
        if not taken.services:
            return  # nothing was ever asked for, or nothing was found: an older file knows more
        try:
            data = snapshot.encode(taken)
            try:
                self._writing = asyncio.get_running_loop().run_in_executor(None, replace, self.path, data)
            except RuntimeError:  # the interpreter ends, and lets nobody start a thread any more
                replace(self.path, data)
            else:
                await asyncio.shield(self._writing)
        except (OSError, SnapshotError) as error:
            _log.warning("the last known endpoints were not saved in %s: %s", self.path, error)


def replace(path: Path, data: bytes) -> None:
    """Put `data` in the file's place, all or nothing, also if the machine fails meanwhile.

    Raises:
        OSError: the disk says no; the old file stands.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # meta of instances may be nobody else's business
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


class Confirming(Protocol):
    """Enough of a subscription to see whether the registry confirms it."""

    @property
    def live(self) -> bool: ...
    @property
    def known(self) -> bool: ...
    @property
    def revision(self) -> int: ...
    @property
    def instances(self) -> Mapping[InstanceKey, Instance]: ...
    def age_s(self) -> float: ...
    def listen(self, changed: Callable[[ServiceEvent], None]) -> Callable[[], None]: ...


def taken(
    store_id: str, subscriptions: Mapping[str, Confirming], routes: Mapping[str, bytes], now_s: float
) -> Snapshot:
    """What is known of every service that has instances; `now_s` is the wall clock's time."""
    known = [
        Known(service, followed.revision, now_s - followed.age_s(), tuple(followed.instances.values()))
        for service, followed in subscriptions.items()
        if followed.known and followed.instances
    ]
    return Snapshot(store_id, tuple(known), dict(routes))


async def confirmed(followed: Sequence[Confirming]) -> None:
    """Return when the registry has confirmed or corrected all of it, or after `RECALL_S`, saying so.

    A registry that answers takes some milliseconds for it.
    """
    more = asyncio.Event()
    stop_listening = [subscription.listen(lambda _event: more.set()) for subscription in followed]
    try:
        async with asyncio.timeout(limits.RECALL_S):
            while not all(subscription.live for subscription in followed):
                more.clear()
                await more.wait()
    except TimeoutError:
        ages_s = [subscription.age_s() for subscription in followed if not subscription.live]
        _log.warning(
            "no registry confirms the endpoints of %d services: using what was known up to %.0f s ago",
            len(ages_s),
            max(ages_s),
        )
    finally:
        for stop in stop_listening:
            stop()
