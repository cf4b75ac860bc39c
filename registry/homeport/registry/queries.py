"""Prepared queries, carried out: kept, found, and answered from the catalogue. `core/queries.py` decides.

One site is one datacenter: what a query says of others is kept and shown, and passed over when it is executed, as
Consul passes over datacenters that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.core.errors import NotFound
from homeport.client.core.model import Status
from homeport.registry.core import queries
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.entries import Entry
from homeport.registry.core.overlay import Overlay
from homeport.registry.core.queries import Query
from homeport.registry.sessions import Sessions
from homeport.registry.store.contract import Store

AGENT: Final = "_agent"  # what `near` calls the node that is asked
SOURCE_IP: Final = "_ip"  # and the one at the address that asks


class Executed(msgspec.Struct, frozen=True):
    """A query as it was asked, filled in if it is a template, and the instances that it admits, best first."""

    query: Query
    entries: list[Entry]


class Queries:
    """The prepared queries of one registry."""

    def __init__(self, store: Store, catalogue: Catalogue, sessions: Sessions, node: str) -> None:
        self._store = store
        self._catalogue = catalogue
        self._sessions = sessions
        self._node = node

    async def keep(self, query: Query, *, new: bool) -> None:
        """Write a query, a new one or one that is there.

        Raises:
            InvalidArgument: it cannot be; the message says what is allowed.
            NotFound: it is to be changed and is not there.
        """
        queries.expect_valid(query)
        kept = msgspec.structs.replace(query, token="", create_index=0, modify_index=0)
        await self._sessions.decide(lambda overlay: queries.store(overlay, kept, new=new))

    async def delete(self, id_: str) -> None:
        """Delete a query.

        Raises:
            NotFound: it is not there.
        """

        def attempt(overlay: Overlay) -> None:
            queries.remove(overlay, id_)

        await self._sessions.decide(attempt)

    def find(self, id_: str) -> Query:
        """The query that has an id.

        Raises:
            NotFound: there is none.
        """
        return _found(queries.find(self._store.mvcc, id_), id_)

    def every(self) -> list[Query]:
        return queries.every(self._store.mvcc)

    def resolve(self, asked: str) -> Query:
        """The query that answers to an id or a name, filled in for it if it is a template.

        Raises:
            NotFound: there is none.
        """
        return _found(queries.resolve(self._store.mvcc, asked), asked)

    def execute(self, asked: str, rng: Rng, *, near: str = "", source: str = "", limit: int = 0) -> Executed:
        """Ask a query by its id or name. Its instances are shuffled, those on the nearest node first.

        Args:
            near: the node that is nearest: its name, `_agent` or `_ip`; empty: as the query says.
            source: the address that asks.
            limit: how many instances at most; 0: all.

        Raises:
            NotFound: there is no such query.
        """
        query = self.resolve(asked)
        service = self._catalogue.services.get(query.service.service)
        entries = [service.entries[key] for key in sorted(service.entries)] if service else []
        admitted = [entry for entry in entries if self._admits(query, entry)]
        admitted.sort(key=lambda _: rng.random())
        nearest = self.nearest(near or query.service.near, source)
        if nearest:
            admitted.sort(key=lambda entry: entry.registered.node != nearest)
        return Executed(query, admitted[:limit] if limit else admitted)

    def _admits(self, query: Query, entry: Entry) -> bool:
        one = entry.registered
        node = self._catalogue.find(one.node, "")
        ignored = frozenset(query.service.ignore_check_ids)
        statuses = [*self._statuses(entry, ignored), *(self._statuses(node, ignored) if node else ())]
        return queries.admits(query.service, one.tags, one.meta, node.registered.meta if node else {}, statuses)

    def _statuses(self, entry: Entry, ignored: frozenset[str]) -> Iterator[Status]:
        """The checks of an instance, or of a node, except those whose CheckIDs are ignored; its state is one, too."""
        one = entry.registered
        written = self._catalogue.checks.written(one.key)
        standing = {check.name: "critical" if check.kind == "ttl" else check.initial for check in one.checks} | written
        if one.state != "up":
            standing[f"_service_{one.state}:{one.id}" if one.id else f"_node_{one.state}"] = "critical"
        for name, status in standing.items():
            if name not in ignored and f"service:{one.id}:{name}" not in ignored:  # Consul's name for others' checks
                yield status

    def nearest(self, near: str, source: str) -> str:
        """The node that `near` names for whoever asks from that address; empty: none."""
        if near == AGENT:
            return self._node
        if near == SOURCE_IP:
            nodes = self._catalogue.nodes.values()
            return next((node.name for node in nodes if source and node.address == source), "")
        return near


def _found(query: Query | None, asked: str) -> Query:
    if query is None:
        raise NotFound(f"Query not found: {asked!r}")
    return query
