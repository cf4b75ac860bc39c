"""Blocking queries: the resources that can be waited for, each with an index and a way to be woken, none by polling.

A resource wakes for changes of its own alone. Keys are watched through the store; services have waits of their own
here, since what a service's index follows (instances and the statuses of their checks) lies under two prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.indexes import Indexes
from homeport.registry.core.txn import Change
from homeport.registry.store.contract import Store

if TYPE_CHECKING:
    from homeport.registry.fronts.consul.agent import Agent

Wake = Callable[[], None]  # must not block; may be called more than once
Unsubscribe = Callable[[], None]


class Resource(Protocol):
    """What a blocking query waits for."""

    def index(self) -> int:
        """The revision of its last change; never 0."""
        ...

    def subscribe(self, wake: Wake) -> Unsubscribe:
        """Call `wake` when the index may have grown, until unsubscribed."""
        ...


class ServiceWaits:
    """Who waits for which service, and for the list of them."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._of_service: dict[str, dict[Wake, None]] = {}
        self._of_list: dict[Wake, None] = {}
        self._list_index = catalogue.index

    def __len__(self) -> int:
        return len(self._of_list) + sum(len(wakes) for wakes in self._of_service.values())

    def of_service(self, name: str, wake: Wake) -> Unsubscribe:
        self._of_service.setdefault(name, {})[wake] = None

        def unsubscribe() -> None:
            wakes = self._of_service[name]
            del wakes[wake]
            if not wakes:
                del self._of_service[name]

        return unsubscribe

    def of_list(self, wake: Wake) -> Unsubscribe:
        self._of_list[wake] = None
        return lambda: self._of_list.pop(wake, None)

    def revision(self, changes: Iterable[Change]) -> None:
        """Wake those whom a revision concerns; the catalogue has taken it in."""
        if self._catalogue.index != self._list_index:
            self._list_index = self._catalogue.index
            for wake in tuple(self._of_list):
                wake()
        if self._of_service:
            for name in self._services(changes):
                for wake in tuple(self._of_service.get(name, ())):
                    wake()

    def _services(self, changes: Iterable[Change]) -> dict[str, None]:
        touched: dict[str, None] = {}
        for change in changes:
            if change.key.startswith(keys.INSTANCES):
                touched[keys.split(change.key)[0]] = None
            elif change.key.startswith(keys.CHECKS):
                node, id_, _ = keys.split(change.key)
                entry = self._catalogue.find(node, id_)
                if entry is not None:  # else its instance went with it, and is named by its own change
                    touched[entry.registered.service] = None
        return touched


class OneService:
    """The instances of a service and their checks."""

    def __init__(self, agent: Agent, name: str) -> None:
        self._agent = agent
        self._name = name

    def index(self) -> int:
        return max(self._agent.catalogue.index_of(self._name), 1)

    def subscribe(self, wake: Wake) -> Unsubscribe:
        return self._agent.waits.of_service(self._name, wake)


class AllServices:
    """Which services there are, and their tags."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def index(self) -> int:
        return max(self._agent.catalogue.index, 1)

    def subscribe(self, wake: Wake) -> Unsubscribe:
        return self._agent.waits.of_list(wake)


class Keys:
    """A key of the store (`end` None) or all that start like it, there or not."""

    def __init__(self, store: Store, indexes: Indexes, key: bytes, end: bytes | None) -> None:
        self._store = store
        self._indexes = indexes
        self._key = key
        self._end = end

    def index(self) -> int:
        return self._indexes.of(self._key) if self._end is None else self._indexes.under(self._key)

    def subscribe(self, wake: Wake) -> Unsubscribe:
        return self._store.watch(self._key, self._end, 0, wake).close
