"""The names that DNS can ask for, whatever their case, kept up to date change by change.

The catalogue finds services and nodes by their exact name. DNS asks in any case; it asks for parts of names that have
dots in them (a node `db.example.com` makes `com.node.homeport` a name without records of its own); and it asks whose an
address is.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable

from homeport.client.core.model import InstanceKey, ServiceEvent
from homeport.registry.core.catalogue import Catalogue

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def address_of(text: str) -> Address | None:
    """The address that a text is, None if it is a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


class Names:
    """Names by their lower-case bytes, with how many things each stands for, and the ends of those that have dots."""

    __slots__ = ("_by_folded", "_ends")

    def __init__(self) -> None:
        self._by_folded: dict[bytes, Counter[str]] = {}
        self._ends: Counter[bytes] = Counter()

    def add(self, name: str) -> None:
        folded = name.encode().lower()
        self._by_folded.setdefault(folded, Counter())[name] += 1
        for end in _ends(folded):
            self._ends[end] += 1

    def remove(self, name: str) -> None:
        folded = name.encode().lower()
        same = self._by_folded[folded]
        same[name] -= 1
        if not same[name]:
            del same[name]
            if not same:
                del self._by_folded[folded]
        for end in _ends(folded):
            self._ends[end] -= 1
            if not self._ends[end]:
                del self._ends[end]

    def find(self, folded: bytes) -> str | None:
        """The name as it is written; of several that differ only in case the one in lower case, else the first."""
        same = self._by_folded.get(folded)
        return max(same, key=lambda name: (name == name.lower(), *(-ord(char) for char in name))) if same else None

    def has_end(self, folded: bytes) -> bool:
        """Whether some name ends in a dot and this."""
        return folded in self._ends


def _ends(folded: bytes) -> Iterable[bytes]:
    at = folded.find(b".")
    while at >= 0:
        yield folded[at + 1 :]
        at = folded.find(b".", at + 1)


class Directory:
    """What is there, as DNS sees it."""

    __slots__ = ("_by_address", "_catalogue", "_known", "nodes", "services")

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.services = Names()
        self.nodes = Names()
        # By key, that of a node with an empty id: the service ("" for a node) and the address.
        self._known: dict[InstanceKey, tuple[str, Address | None]] = {}
        self._by_address: dict[Address, dict[InstanceKey, None]] = {}
        for service in catalogue.services.values():
            for key in service.entries:
                self._follow(key)
        for node in catalogue.nodes:
            self._follow((node, ""))

    def apply(self, events: Iterable[ServiceEvent]) -> None:
        """Take in what the catalogue has just taken in, and what looks different by it."""
        for event in events:
            for key in event.removed:
                self._follow(key)
            for instance in event.changed:
                self._follow(instance.key)
        for node, id_ in self._catalogue.touched.keys:
            if not id_:
                self._follow((node, ""))

    def node_address(self, node: str) -> str:
        """Where a node is, an address or a name: as registered, else where the first instance on it is."""
        found = self._catalogue.nodes.get(node)
        return found.address if found else ""

    def node_meta(self, node: str) -> dict[str, str]:
        """What is registered of a node."""
        entry = self._catalogue.find(node, "")
        return entry.registered.meta if entry else {}

    def at(self, address: Address) -> tuple[list[str], list[str]]:
        """The nodes and the services that are at an address, or have instances there, each in order."""
        found = self._by_address.get(address, {})
        return sorted({node for node, _ in found}), sorted({self._known[key][0] for key in found if key[1]})

    def _follow(self, key: InstanceKey) -> None:
        entry = self._catalogue.find(*key)
        one = entry.registered if entry else None
        new = None if one is None else (one.service if key[1] else "", address_of(one.address))
        old = self._known.get(key)
        if old == new:
            return
        if old is not None:
            del self._known[key]
            if key[1]:
                self.services.remove(old[0])
            self.nodes.remove(key[0])
            if old[1] is not None:
                there = self._by_address[old[1]]
                del there[key]
                if not there:
                    del self._by_address[old[1]]
        if new is not None:
            self._known[key] = new
            if key[1]:
                self.services.add(new[0])
            self.nodes.add(key[0])
            if new[1] is not None:
                self._by_address.setdefault(new[1], {})[key] = None
