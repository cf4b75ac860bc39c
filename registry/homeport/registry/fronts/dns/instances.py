"""What DNS says of instances and nodes: members of record sets, made from the catalogue's values. No state, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.core.model import Instance
from homeport.registry.fronts.consul.registrations import EXTRA, details_of
from homeport.registry.fronts.dns import records
from homeport.registry.fronts.dns.directory import Address, address_of
from homeport.registry.fronts.dns.records import Member, name_wire, record

_PRIORITY: Final = 1  # of all: their weights tell them apart
_VALUE_ALONE: Final = "rfc1035-"  # how Consul's metadata says that a TXT record holds a value and no key


class Place(msgspec.Struct, frozen=True):
    """An instance with where it is: at an address, at a name, or nobody knows where ("")."""

    instance: Instance
    address: Address | None
    name: str
    weight: int


def places(instances: Sequence[Instance], node_address: Callable[[str], str]) -> list[Place]:
    """Where instances are; one without an address of its own is where its node is."""
    found = []
    for one in instances:
        text = one.address or node_address(one.node)
        address = address_of(text)
        found.append(Place(one, address, "" if address is not None else text, _weight(one)))
    return found


def _weight(instance: Instance) -> int:
    """Its weight now: Consul's clients give another for the time that it is at warning."""
    if instance.status == "warning" and EXTRA in instance.extra:
        return details_of(instance).weight_warning
    return instance.weight


def addresses(found: Sequence[tuple[Address, int]], qtype: int, ttl_s: int) -> list[Member]:
    """Records of those addresses, each with a weight, that are of the kind that was asked for."""
    kinds = [(records.A if address.version == 4 else records.AAAA, address, weight) for address, weight in found]
    return [
        Member(record(kind, ttl_s, address.packed), weight)
        for kind, address, weight in kinds
        if qtype in (kind, records.ANY)
    ]


def alias_of(found: Sequence[Place], rng: Rng) -> bytes | None:
    """One of the names that instances are at, drawn by weight, where none is at an address; else None."""
    if any(place.address is not None for place in found):
        return None
    named = [(wire, place.weight) for place in found if place.name and (wire := name_wire(place.name))]
    return named[records.drawn([weight for _, weight in named], rng)[0]][0] if named else None


def servers(found: Sequence[Place], suffix: str, ttl_s: int) -> list[Member]:
    """SRV records; each target is a name of the instance's very address, which comes along.

    Args:
        suffix: what follows the digits of the address, with a dot in front.
    """
    members = []
    for place in found:
        numbers = b"".join(number.to_bytes(2, "big") for number in (_PRIORITY, place.weight, place.instance.port))
        address = place.address
        target = name_wire(place.name if address is None else address.packed.hex() + suffix)
        if target is None:
            continue
        wire = record(records.SRV, ttl_s, numbers + target)
        if address is None:
            members.append(Member(wire, place.weight))
        else:
            kind = records.A if address.version == 4 else records.AAAA
            members.append(Member(wire, place.weight, target, record(kind, ttl_s, address.packed, b"")))
    return members


def descriptions(found: Sequence[Place], ttl_s: int) -> list[Member]:
    """TXT records of instances, a string of key=value (RFC 1464) for each thing that is known."""
    return [Member(record(records.TXT, ttl_s, _description(place.instance)), place.weight) for place in found]


def _description(instance: Instance) -> bytes:
    entries = [f"id={instance.id}", f"node={instance.node}"]
    for name in ("version", "zone"):
        value = getattr(instance, name)
        entries += [f"{name}={value}"] if value else []
    entries += [f"tag={tag}" for tag in instance.tags]
    entries += [f"{key}={value}" for key, value in sorted(instance.meta.items())]
    return records.strings(entries)


def node_descriptions(meta: dict[str, str], ttl_s: int) -> list[Member]:
    """TXT records of a node, one for each piece of its metadata, as Consul writes them."""
    texts = [value if key.startswith(_VALUE_ALONE) else f"{key}={value}" for key, value in sorted(meta.items())]
    return [Member(record(records.TXT, ttl_s, records.strings([text]))) for text in texts]


def tags_of(instance: Instance) -> list[bytes]:
    """Its tags as names are compared."""
    return [tag.encode().lower() for tag in instance.tags]
