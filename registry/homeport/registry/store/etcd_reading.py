"""Everything that etcd holds of a store, page by page and consistent at one revision."""

from __future__ import annotations

from typing import Final, NamedTuple

from homeport.client.core.model import KeyValue
from homeport.registry.core import keys
from homeport.registry.store.etcd_batches import Layout
from homeport.registry.store.etcd_cluster import EtcdCluster, HistoryGone, Stored, TooLarge, Unreachable

_PAGE: Final = 1000  # keys read at once, to begin with
_PAGE_MAX: Final = 5000  # some 30 ms of ours; the smaller, the oftener etcd 3.4 walks over all that is left
_PAGE_BYTES: Final = 4 * 1024 * 1024  # that a page is to have, if the next keys are like the last


class Everything(NamedTuple):
    """What was found; revisions of `entries` count as the layout does, the others are etcd's."""

    entries: list[KeyValue]
    members: dict[str, str]  # replicas that live, with their machines
    revision: int
    identity: Stored | None  # the store's name
    last: Stored | None  # what the last batch put
    fences: dict[bytes, int]  # revisions of the replicas' fences

    @property
    def last_mod(self) -> int:
        """The revision of the last batch; 0: there was none."""
        return self.last.mod_revision if self.last is not None else 0


async def read_all(cluster: EtcdCluster, layout: Layout) -> Everything:
    """Read all that is under the prefix.

    Raises:
        Unreachable, Refused: as the cluster.
    """
    while True:
        entries: list[KeyValue] = []
        members: dict[str, str] = {}
        own: dict[bytes, Stored] = {}
        fences: dict[bytes, int] = {}
        start, revision, more, limit = layout.prefix, 0, True, _PAGE
        try:
            while more:
                try:
                    page = await cluster.page(start, keys.prefix_end(layout.prefix), revision, limit)
                except TooLarge:
                    if limit == 1:
                        raise
                    limit = max(1, limit // 4)
                    continue
                except Unreachable:
                    if limit <= _PAGE:
                        raise
                    limit = _PAGE  # it may have been too much for the time that a call has
                    continue
                limit = _next_limit(limit, page.entries)
                revision = revision or page.revision
                for stored in page.entries:
                    if stored.key.startswith(layout.keys):
                        entries.append(layout.decoded(stored))
                    elif stored.key.startswith(layout.members):
                        members[stored.key.removeprefix(layout.members).decode()] = stored.value.decode()
                    elif stored.key.startswith(layout.fences):
                        fences[stored.key] = stored.mod_revision
                    else:
                        own[stored.key] = stored
                more = page.more and bool(page.entries)
                if more:
                    start = page.entries[-1].key + b"\0"
        except HistoryGone:
            continue  # somebody compacted while we read: begin anew
        return Everything(entries, members, revision, own.get(layout.id), own.get(layout.last), fences)


def _next_limit(limit: int, found: list[Stored]) -> int:
    """How many keys to ask for next, after these."""
    value_bytes = sum(len(stored.value) for stored in found) // max(1, len(found))
    return max(1, min(2 * limit, _PAGE_MAX, _PAGE_BYTES // (value_bytes + 1)))
