"""Blocking queries: the resources that can be waited for, each with an index and a way to be woken, none by polling.

A resource wakes for changes of its own alone. Keys are watched through the store; parts of the catalogue have waits of
their own here, since what a service's index follows (instances, their checks, their nodes) lies under several prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from homeport.client.core.model import ServiceEvent
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.indexes import Indexes
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

    def unsure_until(self, index: int) -> float:
        """Until when (a time of the loop) who names this index may not know what it is of; 0.0: it does."""
        ...


class Topic(NamedTuple):
    """What can be waited for here: all of a kind, or with a name one; the sessions of a node by its name."""

    kind: Literal["service", "node", "services", "instances", "nodes", "checks", "sessions"]
    name: str = ""


class Waits:
    """Who waits for which part of the catalogue; and of which parts two different looks had one index.

    That is so when no revision says why something looks different, and none came between. Who was told the first look
    and asks again after the second names the index of both. So for a while nobody who names it waits for long.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._looked: dict[Topic, None] = {}  # what looked different at this revision,
        self._looked_at = 0
        self._unsure: dict[Topic, tuple[int, float]] = {}  # the indexes that two looks had, and until when that counts
        self._waiting: dict[Topic, dict[Wake, None]] = {}
        self.unsaid = 0  # times that something looked different although no revision said so

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def of(self, topic: Topic, wake: Wake) -> Unsubscribe:
        self._waiting.setdefault(topic, {})[wake] = None

        def unsubscribe() -> None:
            wakes = self._waiting[topic]
            del wakes[wake]
            if not wakes:
                del self._waiting[topic]

        return unsubscribe

    def revision(self) -> None:
        """Wake those whom the last revision concerns; the catalogue has taken it in."""
        if not self._waiting:
            return
        catalogue, touched = self._catalogue, self._catalogue.touched
        moved = [Topic("service", name) for name in touched.services]
        moved += [Topic("node", name) for name in touched.nodes]
        moved += [topic for topic in _LISTS if index_of(catalogue, topic) == touched.revision]
        for topic in moved:
            self.wake(topic)

    def look_different(self, events: Iterable[ServiceEvent], now: float) -> None:
        """Wake those who wait for what looks different now, although no revision says so.

        Its index has moved to the newest revision. That is no news by the number to whoever knew that revision; so
        they are answered without comparing it.
        """
        self.unsaid += 1
        catalogue = self._catalogue
        moved: list[Topic] = []
        for event in events:
            nodes = dict.fromkeys([*(one.node for one in event.changed), *(node for node, _ in event.removed)])
            moved += [Topic("service", event.service), *(Topic("node", node) for node in nodes)]
        moved += [topic for topic in _LISTS if index_of(catalogue, topic) == catalogue.revision]
        for topic in dict.fromkeys(moved):
            self._note_look(topic, now)
            self.wake(topic)

    def _note_look(self, topic: Topic, now: float) -> None:
        revision, touched = self._catalogue.revision, self._catalogue.touched
        if self._looked_at != revision:
            self._looked.clear()
            self._looked_at = revision
            self._unsure = {topic: it for topic, it in self._unsure.items() if it[1] > now}
        by_revision = touched.revision == revision and (
            not topic.name or topic.name in (touched.services if topic.kind == "service" else touched.nodes)
        )
        if by_revision or topic in self._looked:
            self._unsure[topic] = (revision, now + UNSURE_S)
        self._looked[topic] = None

    def unsure_until(self, topic: Topic, index: int) -> float:
        """As `Resource.unsure_until`."""
        unsure, until = self._unsure.get(topic, (0, 0.0))
        return until if unsure == index else 0.0

    def wake(self, topic: Topic) -> None:
        for wake in tuple(self._waiting.get(topic, ())):
            wake()


UNSURE_S: Final = 60.0  # who was told a look and has not asked again by then is no blocking query's loop
UNSURE_WAIT_S: Final = 1.0  # how long one of those waits meanwhile: one answer a second each, for a minute

_LISTS: Final = (Topic("services"), Topic("instances"), Topic("nodes"), Topic("checks"))


def index_of(catalogue: Catalogue, topic: Topic) -> int:
    """The revision of the last change of a part of the catalogue; never 0."""
    assert topic.kind != "sessions", "they are no part of it"
    match topic.kind:
        case "service":
            return catalogue.index_of(topic.name)
        case "node":
            return catalogue.index_of_node(topic.name)
        case "services":
            return catalogue.index
        case "instances":
            return catalogue.instances_index
        case "nodes":
            return catalogue.nodes_index
        case "checks":
            return catalogue.checks_index


class Part:
    """A part of the catalogue."""

    def __init__(self, agent: Agent, topic: Topic) -> None:
        self._agent = agent
        self._topic = topic

    def index(self) -> int:
        return index_of(self._agent.catalogue, self._topic)

    def subscribe(self, wake: Wake) -> Unsubscribe:
        return self._agent.waits.of(self._topic, wake)

    def unsure_until(self, index: int) -> float:
        return self._agent.waits.unsure_until(self._topic, index)


class SessionsOf:
    """The sessions of a node."""

    def __init__(self, agent: Agent, node: str) -> None:
        self._agent = agent
        self._node = node

    def index(self) -> int:
        return self._agent.node_sessions.index_of(self._node)

    def subscribe(self, wake: Wake) -> Unsubscribe:
        return self._agent.waits.of(Topic("sessions", self._node), wake)

    def unsure_until(self, _index: int) -> float:
        return 0.0


class Nothing:
    """What is empty and stays so."""

    def index(self) -> int:
        return 1

    def subscribe(self, _wake: Wake) -> Unsubscribe:
        return lambda: None

    def unsure_until(self, _index: int) -> float:
        return 0.0


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

    def unsure_until(self, _index: int) -> float:
        return 0.0
