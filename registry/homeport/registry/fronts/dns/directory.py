"""The names that DNS can ask for, whatever their case, kept up to date revision by revision.

The catalogue finds services and nodes by their exact name. DNS asks in any case; it asks for parts of names that have
dots in them (a node `db.example.com` makes `com.node.homeport` a name without records of its own); and it asks whose an
address is.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable

from homeport.client.core.model import InstanceKey
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.txn import Change

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

    __slots__ = ("_by_address", "_catalogue", "_known", "_on_node", "nodes", "services")

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.services = Names()
        self.nodes = Names()
        self._known: dict[InstanceKey, tuple[str, Address | None]] = {}  # service and address
        self._on_node: dict[str, dict[str, None]] = {}
        self._by_address: dict[Address, dict[InstanceKey, None]] = {}
        for service in catalogue.services.values():
            for key in service.entries:
                self._follow(key)

    def apply(self, changes: Iterable[Change]) -> None:
        """Take in one revision, after the catalogue has."""
        touched: dict[InstanceKey, None] = {}
        for change in changes:
            if change.key.startswith(keys.INSTANCES):
                _, node, id_ = keys.split(change.key)
                touched[node, id_] = None
        for key in touched:
            self._follow(key)

    def node_address(self, node: str) -> Address | None:
        """Where a node is: at the address of the first instance on it that has one."""
        return next((at for id_ in sorted(self._on_node.get(node, ())) if (at := self._known[node, id_][1])), None)

    def at(self, address: Address) -> tuple[list[str], list[str]]:
        """The nodes and the services that have instances at an address, each in order."""
        found = self._by_address.get(address, {})
        return sorted({node for node, _ in found}), sorted({self._known[key][0] for key in found})

    def _follow(self, key: InstanceKey) -> None:
        node, id_ = key
        old = self._known.pop(key, None)
        if old is not None:
            self.services.remove(old[0])
            self.nodes.remove(node)
            del self._on_node[node][id_]
            if not self._on_node[node]:
                del self._on_node[node]
            if old[1] is not None:
                there = self._by_address[old[1]]
                del there[key]
                if not there:
                    del self._by_address[old[1]]
        entry = self._catalogue.find(node, id_)
        if entry is not None:
            one = entry.registered
            address = address_of(one.address)
            self._known[key] = one.service, address
            self.services.add(one.service)
            self.nodes.add(node)
            self._on_node.setdefault(node, {})[id_] = None
            if address is not None:
                self._by_address.setdefault(address, {})[key] = None
