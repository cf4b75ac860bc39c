"""Watches of services and keys: opening and closing them, and what they deliver."""

from __future__ import annotations

import msgspec

from homeport.client.core.messages.base import Answer, Done, Notice, Request
from homeport.client.core.model import KvEvent, Lost, ServiceEvent


class Watching(Answer, frozen=True, omit_defaults=True):
    """The watch stands; its first event follows. `revision` is where the store is now."""

    store_id: str
    revision: int


class WatchService(Request[Watching], frozen=True, omit_defaults=True):
    """Deliver a service's instances (all of them, whatever their status): a snapshot, then deltas.

    `watch` is a number of the client's choosing, new for each watch of a connection. A connection that reads too
    slowly gets `Lost` and a fresh snapshot in place of the deltas it missed.
    """

    method = "watch_service"
    watch: int
    service: str


class WatchKv(Request[Watching], frozen=True, omit_defaults=True):
    """Deliver changes of a key, or of a prefix, from `start_revision` on (0: from now); what is lost is said."""

    method = "watch_kv"
    watch: int
    key: bytes
    prefix: bool = False
    start_revision: int = 0
    store_id: str = ""


class CancelWatch(Request[Done], frozen=True, omit_defaults=True):
    method = "cancel_watch"
    watch: int


class Applied(Notice, frozen=True, omit_defaults=True):
    """The client has acted on everything up to `revision`; a drain waits for this."""

    method = "applied"
    watch: int
    revision: int


class KvEvents(msgspec.Struct, frozen=True, omit_defaults=True):
    """A revision's changes to the keys that a watch asked for; with `more`, the next event belongs to it too."""

    revision: int
    events: tuple[KvEvent, ...]
    more: bool = False


# What a watch delivers.
Event = ServiceEvent | KvEvents | Lost
