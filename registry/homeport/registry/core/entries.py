"""What the catalogue is made of: instances, services and nodes as they are seen, and what is remembered of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from sortedcontainers import SortedDict

from homeport.client.core.model import Instance, InstanceKey, KeyValue, Status

T = TypeVar("T")


class CheckRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands under `h/<node>/<id>/<check>`.

    Where no check of that name is defined, the registry itself found it, or some other program that looks after the
    instance wrote it; what only the front that it came by understands is in `extra`, by the front's name.
    """

    status: Status
    output: str = ""
    extra: dict[str, bytes] = {}
    deregister_after_s: float = 0.0  # of a check that others look after, as in `Check`


class Entry(msgspec.Struct, gc=False, eq=False):
    """One instance: as registered, and as everybody sees it. Or one node, of which both are the same."""

    registered: Instance
    lease: int
    seen: Instance
    stale: bool = False  # its keys are gone, and it is kept
    kept_until: float = 0.0  # how long it is kept, or will be when its keys go; 0: not at all
    kept_status: Status = "passing"  # what it had when its lease ended


UNSEEN: Final = Instance(service="", id="", mod_revision=-1)  # what is seen of one that nobody has seen yet


class Service:
    """All instances of one name. `answers` holds whatever readers made of it, until it changes."""

    __slots__ = ("answers", "entries", "index", "name", "stale")

    def __init__(self, name: str) -> None:
        self.name = name
        self.index = 0
        self.entries: dict[InstanceKey, Entry] = {}
        self.stale: dict[InstanceKey, None] = {}  # those of them that are
        self.answers: dict[object, object] = {}

    def instances(self, passing: bool) -> tuple[Instance, ...]:
        """Its instances in the order of node and id: all of them, or those that can take traffic."""
        seen = [self.entries[key].seen for key in sorted(self.entries)]
        return tuple([one for one in seen if one.available] if passing else seen)

    @property
    def needs_stale(self) -> bool:
        """Whether so few of its instances remain that stale ones are served: fewer than half."""
        return 2 * len(self.stale) > len(self.entries)

    def answer(self, name: object, make: Callable[[Service], T]) -> T:
        """What `make` returns for this service, made once per change."""
        found = self.answers.get(name)
        if found is None:
            found = self.answers[name] = make(self)
        return found  # type: ignore[return-value]  # `name` decides which `make` it is


class Node:
    """A node: what is registered of it (None: nothing), what is on it, and the worst that its own checks say."""

    __slots__ = ("address", "entry", "ids", "index", "name", "status")

    def __init__(self, name: str) -> None:
        self.name = name
        self.index = 0
        self.entry: Entry | None = None
        self.ids: SortedDict[str, str] = SortedDict()  # id -> service
        self.address = ""  # as registered, else that of its first instance
        self.status: Status = "passing"


class LastChanges:
    """Names with the revision of their last change; `floor` is that of the newest no longer remembered."""

    __slots__ = ("_by_age", "_most", "floor")

    def __init__(self, most: int, floor: int = 1) -> None:
        self._most = most
        self._by_age: OrderedDict[str, int] = OrderedDict()
        self.floor = floor

    def index_of(self, name: str) -> int:
        return max(self._by_age.get(name, 0), self.floor)

    def add(self, name: str, revision: int) -> None:
        self._by_age[name] = revision
        self._by_age.move_to_end(name)
        if len(self._by_age) > self._most:
            _, self.floor = self._by_age.popitem(last=False)

    def discard(self, name: str) -> None:
        self._by_age.pop(name, None)


class Touched:
    """What one revision changed anything of: instances by key (with an empty id: a node itself), and whose they are."""

    __slots__ = ("checks", "keys", "nodes", "revision", "services")

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.keys: dict[InstanceKey, None] = {}
        self.services: dict[str, None] = {}
        self.nodes: dict[str, None] = {}
        self.checks = False  # whether any check, or whom it is of


def as_it_stands(registered: Instance, kv: KeyValue) -> Instance:
    """A registration as it stands in the store."""
    return msgspec.structs.replace(
        registered, status="passing", mark="", create_revision=kv.create_revision, mod_revision=kv.mod_revision
    )
