"""Answers in pages that fit into a frame: of a service, for who follows it or asks, and of the list of them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from homeport.client.core import wire
from homeport.client.core.messages import Resolved
from homeport.client.core.model import Instance, ServiceEvent
from homeport.registry.core.entries import Service
from homeport.registry.core.limits import PAGE_BYTES

ENTRY_BYTES: Final = 64  # what an entry of a list weighs besides its key and value
_TAG_BYTES: Final = 5  # what a tag weighs besides its text


def snapshot(service: Service | None, name: str, revision: int) -> list[ServiceEvent]:
    """A service's whole set as watch events: the first says `snapshot`, all but the last say `more`."""
    instances = service.instances(passing=False) if service else ()
    pages = list(_pages(instances)) or [()]
    return [
        ServiceEvent(service=name, revision=revision, snapshot=at == 0, changed=page, more=at < len(pages) - 1)
        for at, page in enumerate(pages)
    ]


def _pages(instances: tuple[Instance, ...]) -> Iterable[tuple[Instance, ...]]:
    page: list[Instance] = []
    size = 0
    for instance in instances:
        size += len(wire.encode(instance))
        if page and size > PAGE_BYTES:
            yield tuple(page)
            page, size = [], len(wire.encode(instance))
        page.append(instance)
    if page:
        yield tuple(page)


def resolved_page(service: Service, passing: bool, offset: int) -> bytes:
    """The encoded `Resolved` of its instances from number `offset` on."""
    instances = service.instances(passing)[offset:]
    page = next(iter(_pages(instances)), ())
    return wire.encode(Resolved(service.index, page, len(page) < len(instances)))


def services_page(tags: Mapping[str, tuple[str, ...]], after: str) -> tuple[dict[str, tuple[str, ...]], bool]:
    """Of services with their tags, in order, as many as fit of those behind `after`; and whether there are more."""
    page: dict[str, tuple[str, ...]] = {}
    size = 0
    for name, found in tags.items():
        if name <= after:
            continue
        size += len(name.encode()) + sum(len(tag.encode()) + _TAG_BYTES for tag in found) + ENTRY_BYTES
        if page and size > PAGE_BYTES:
            return page, True
        page[name] = found
    return page, False
