"""From a question to its answer: pure, synchronous, with what was made for earlier questions kept.

A question that was asked before, about a service that has not changed since, costs a dict access: its records are
there in every order. All others are read, looked up and put together. Names outside the domains are nobody's here: they
are passed to the recursors, if there are any, or refused.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final

import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.core.model import Instance
from homeport.registry.core.catalogue import Catalogue, Service
from homeport.registry.fronts.consul.agent import DATACENTER
from homeport.registry.fronts.consul.registrations import EXTRA, details_of
from homeport.registry.fronts.dns import names, question, records
from homeport.registry.fronts.dns.directory import Address, Directory, address_of
from homeport.registry.fronts.dns.question import Malformed, Query
from homeport.registry.fronts.dns.records import Member, RecordSet, name_wire, record
from homeport.registry.fronts.dns.settings import DnsSettings

_log = logging.getLogger("homeport.registry.dns")

TCP_BYTES_MAX: Final = 65_535
LOOPBACK_UDP_BYTES_MAX: Final = 8192  # nothing is cut in pieces or amplified there; the most that HAProxy's guide asks
RECORDS_KEPT_MAX: Final = 32_768  # in all answers that are kept, in each order: 2 KB each at most
_KEPT_KINDS: Final = frozenset({records.A, records.AAAA, records.SRV, records.TXT})  # no letters' codes: see `quick`
_ZONE_TRANSFERS: Final = frozenset({251, 252})
_QR_AA: Final = 0x8400
_TC: Final = 0x0200
_RD: Final = 0x0100
_RA: Final = 0x0080
_SOA_NUMBERS_S: Final = (3600, 600, 86_400)  # refresh, retry, expire: Consul's; there are no secondaries to mind them
_PRIORITY: Final = 1


class Alias(msgspec.Struct, frozen=True):
    """What a name that was asked for is another name of; `labels` are in lower case."""

    target: str
    labels: tuple[bytes, ...]
    ttl_s: int


class Forward(msgspec.Struct, frozen=True):
    """A question that others answer, if it is an alias's, in part."""

    query: Query
    alias: Alias | None = None


class _Kept:
    """A record set that was made for a question, and what it was made of."""

    __slots__ = ("index", "records", "service")

    def __init__(self, service: Service, made: RecordSet) -> None:
        self.service = service
        self.index = service.index
        self.records = made


class Responder:
    """Answers questions from the catalogue.

    Args:
        directory: follows the catalogue.
        at: the addresses that the front is found at, for the name of the domain's server.
    """

    def __init__(
        self, catalogue: Catalogue, directory: Directory, settings: DnsSettings, rng: Rng, at: list[Address]
    ) -> None:
        self._catalogue = catalogue
        self._directory = directory
        self._settings = settings
        self._rng = rng
        self._at = at
        domains = sorted(settings.domains, key=len, reverse=True)
        self._domains = tuple(tuple(domain.encode().split(b".")) for domain in domains)
        self._datacenter = DATACENTER.encode()
        self._ra = _RA if settings.recursors else 0
        self._opt = records.opt(settings.udp_bytes_max)
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._kept_records = 0

    # --- the short way ------------------------------------------------------------------------------------------

    def quick(self, data: bytes, udp_bytes_max: int) -> bytes | None:
        """The answer to a plain question that was answered before, if all of it fits and nothing has changed.

        Lower-casing a whole question also turns the codes of record types 65 to 90 into others'; of those that are kept
        none is among them.
        """
        counts = data[4:12]
        if counts == question.COUNTS_PLAIN:
            wire, edns = data[12:], 0
        elif counts == question.COUNTS_EDNS and data[-11:-8] == question.OPT_START and data[-6:-4] == b"\0\0":
            if data[-2:] != b"\0\0":
                return None
            wire, edns = data[12:-11], 2
        else:
            return None
        if data[2] & 0xFE:
            return None
        kept = self._kept.get(wire.lower())
        if kept is None or kept.index != kept.service.index:
            return None
        made = kept.records
        if not made.heads:
            return None
        if edns:
            room = udp_bytes_max if udp_bytes_max == TCP_BYTES_MAX else min((data[-8] << 8) + data[-7], udp_bytes_max)
            if made.wire_bytes + question.OPT_BYTES > max(room, question.UDP_BYTES_PLAIN):
                return None
            return data[:2] + made.heads[2 + data[2]] + wire + made.whole(self._rng) + self._opt
        if not made.plain and (udp_bytes_max != TCP_BYTES_MAX or made.wire_bytes > TCP_BYTES_MAX):
            return None
        return data[:2] + made.heads[data[2]] + wire + made.whole(self._rng)

    # --- the whole way ------------------------------------------------------------------------------------------

    def respond(self, data: bytes, udp_bytes_max: int) -> bytes | Forward | None:
        """The answer to a message; None if there must be none.

        Args:
            udp_bytes_max: of an answer over UDP, whatever the asker says it can take; `TCP_BYTES_MAX` for TCP.
        """
        try:
            query = question.read(data)
            return None if query is None else self.answer(query, udp_bytes_max)
        except Malformed as found:
            return self._refuse(data, found)
        except Exception:  # noqa: BLE001 - a defect in one answer must not take anything else with it
            _log.exception("a question could not be answered: %s", data.hex())
            return self._refuse(data, Malformed(question.SERVFAIL))

    def answer(self, query: Query, udp_bytes_max: int) -> bytes | Forward:
        """The answer to a question that could be read."""
        if query.qclass != question.CLASS_IN or query.qtype in _ZONE_TRANSFERS:
            return self.failure(query, question.REFUSED)
        kept = self._kept.get(query.wire.lower()) if query.qtype in _KEPT_KINDS else None
        if kept is not None and kept.index == kept.service.index:
            return self._answer(query, kept.records, udp_bytes_max)
        meant = names.meaning(query.labels, self._domains, self._datacenter)
        if meant.domain is None:
            if meant.address is not None and (members := self._reverse(query, meant.address)):
                return self._answer(query, RecordSet(members, self._start(query)), udp_bytes_max)
            if self._settings.recursors and query.rd:
                return Forward(query)
            return self.failure(query, question.REFUSED)
        match meant.kind:
            case "service":
                return self._service(query, meant, udp_bytes_max)
            case "node":
                found = self._node(query, b".".join(meant.names))
            case "addr":
                address = names.address_in(meant.names)
                found = None if address is None else self._addresses(query, [address], self._settings.node_ttl_s)
            case "ns":
                found = self._addresses(query, self._at, self._settings.node_ttl_s)
            case "apex":
                found = self._apex(query, meant)
            case "between":
                found = []
            case _:
                found = None
        if not found:
            return self._negative(query, meant, exists=found is not None)
        return self._answer(query, RecordSet(found, self._start(query)), udp_bytes_max)

    def failure(self, query: Query, rcode: int) -> bytes:
        """An answer that is nothing but a code."""
        flags = 0x8000 | (_RD if query.rd else 0) | self._ra | rcode & 15
        extra = b"" if query.udp_bytes is None else records.opt(self._settings.udp_bytes_max, rcode)
        return records.message(query.id, flags, query.wire, (0, 0, 1 if extra else 0), extra)

    def _refuse(self, data: bytes, found: Malformed) -> bytes:
        if found.query is not None:
            return self.failure(found.query, found.rcode)
        flags = 0x8000 | int.from_bytes(data[2:4], "big") & (0x7800 | _RD) | found.rcode
        return records.message(data[:2], flags, b"", (0, 0, 0), b"")

    def _answer(self, query: Query, made: RecordSet, udp_bytes_max: int) -> bytes:
        room, records_max = self.room(query, udp_bytes_max)
        body = made.draw(self._rng, room, records_max)
        flags = _QR_AA | (_RD if query.rd else 0) | self._ra | (_TC if body.truncated else 0)
        extra = b"" if query.udp_bytes is None else self._opt
        counts = (body.answers, 0, body.added + (1 if extra else 0))
        return records.message(query.id, flags, query.wire, counts, body.wire + extra)

    def room(self, query: Query, udp_bytes_max: int) -> tuple[int, int]:
        """The bytes that an answer may have without its OPT record, and the records."""
        if udp_bytes_max == TCP_BYTES_MAX:
            return TCP_BYTES_MAX - question.OPT_BYTES, TCP_BYTES_MAX
        if query.udp_bytes is None:
            return question.UDP_BYTES_PLAIN, records.PLAIN_RECORDS_MAX
        return min(query.udp_bytes, udp_bytes_max) - question.OPT_BYTES, TCP_BYTES_MAX

    def _negative(self, query: Query, meant: names.Meaning, *, exists: bool) -> bytes:
        """No records of this type (`exists`), or no such name; with the SOA record that says for how long."""
        rcode = question.NOERROR if exists else question.NXDOMAIN
        flags = _QR_AA | (_RD if query.rd else 0) | self._ra | rcode
        apex = self._apex_pointer(query, meant)
        soa = record(records.SOA, self._settings.negative_ttl_s, self._soa(query, meant), apex)
        extra = b"" if query.udp_bytes is None else self._opt
        # It always fits: the longest question and an SOA record that points into it are 340 bytes.
        return records.message(query.id, flags, query.wire, (0, 1, 1 if extra else 0), soa + extra)

    @staticmethod
    def _start(query: Query) -> int:
        return question.HEADER_BYTES + len(query.wire)

    # --- services -----------------------------------------------------------------------------------------------

    def _service(self, query: Query, meant: names.Meaning, udp_bytes_max: int) -> bytes | Forward:
        exists = (
            len(meant.names) == 1 and meant.names[0][:1] == b"_"
        )  # `_tcp`: what stands before `_orders` stands on it
        exists = exists or self._directory.services.has_end(b".".join(meant.names))
        for folded, tag in names.service_readings(meant.names):
            name = self._directory.services.find(folded)
            service = None if name is None else self._catalogue.services.get(name)
            if service is None:
                continue
            serving = [one for one in service.instances(passing=True) if self._serves(one)]
            tagged = [one for one in serving if not tag or tag in _tags(one)]
            if tagged:
                return self._serving(query, meant, service, tagged, udp_bytes_max)
            # A tag with dots in it makes names without records of their own.
            exists = exists or any(each.endswith(b"." + tag) for one in serving for each in _tags(one))
        return self._negative(query, meant, exists=exists)

    def _serves(self, instance: Instance) -> bool:
        return instance.status == "passing" or not self._settings.only_passing

    def _serving(
        self, query: Query, meant: names.Meaning, service: Service, instances: list[Instance], udp_bytes_max: int
    ) -> bytes | Forward:
        ttl_s = self._settings.ttl_s_of(service.name)
        match query.qtype:
            case records.SRV:
                members = self._servers(meant, instances, ttl_s)
            case records.TXT:
                members = [Member(record(records.TXT, ttl_s, _description(one)), _weight(one)) for one in instances]
            case records.A | records.AAAA | records.ANY | records.CNAME:
                addresses = self._service_addresses(query, instances, ttl_s)
                if addresses is None:
                    return self._alias(query, instances, ttl_s, udp_bytes_max)
                members = addresses
            case _:
                members = []
        if not members:
            return self._negative(query, meant, exists=True)
        made = RecordSet(members, self._start(query), ra=bool(self._ra))
        if query.qtype in _KEPT_KINDS and all(one.address for one in instances):  # else nodes move them, too
            self._keep(query, service, made)
        return self._answer(query, made, udp_bytes_max)

    def _where(self, instance: Instance) -> Address | None:
        """An instance's address, that of its node if it has none; None if it is at a name."""
        return address_of(instance.address) if instance.address else self._directory.node_address(instance.node)

    def _service_addresses(self, query: Query, instances: list[Instance], ttl_s: int) -> list[Member] | None:
        """Records of the addresses of the kind that was asked for; None if every instance is at a name."""
        found = [(address, _weight(one)) for one in instances if (address := self._where(one)) is not None]
        if not found and any(one.address for one in instances):
            return None
        kinds = [(records.A if address.version == 4 else records.AAAA, address, weight) for address, weight in found]
        return [
            Member(record(kind, ttl_s, address.packed), weight)
            for kind, address, weight in kinds
            if query.qtype in (kind, records.ANY)
        ]

    def _alias(self, query: Query, instances: list[Instance], ttl_s: int, udp_bytes_max: int) -> bytes | Forward:
        """One of the names that the instances are at, drawn by weight: a name has one CNAME and no more."""
        named = [(one.address, wire, _weight(one)) for one in instances if (wire := name_wire(one.address))]
        at = records.drawn([weight for _, _, weight in named], self._rng)[:1]
        if not at:
            return self.failure(query, question.SERVFAIL)  # it is there, and nothing that DNS could say of it
        target, wire, _ = named[at[0]]
        labels = tuple(target.encode().lower().rstrip(b".").split(b"."))
        if query.qtype in (records.A, records.AAAA) and (self._is_ours(labels) or (self._ra and query.rd)):
            return Forward(query, Alias(target.rstrip(".") + ".", labels, ttl_s))
        return self._answer(
            query, RecordSet([Member(record(records.CNAME, ttl_s, wire))], self._start(query)), udp_bytes_max
        )

    def _is_ours(self, labels: names.Labels) -> bool:
        return names.meaning(labels, self._domains, self._datacenter).domain is not None

    def _servers(self, meant: names.Meaning, instances: list[Instance], ttl_s: int) -> list[Member]:
        """SRV records; each target is a name of the instance's very address, which is added."""
        assert meant.domain is not None
        suffix = b".".join((b".addr", self._datacenter, *meant.domain)).decode()
        members = []
        for one in instances:
            weight = _weight(one)
            numbers = b"".join(number.to_bytes(2, "big") for number in (_PRIORITY, weight, one.port))
            address = self._where(one)
            target = name_wire(one.address if address is None else address.packed.hex() + suffix)
            if target is None:
                continue
            wire = record(records.SRV, ttl_s, numbers + target)
            if address is None:
                members.append(Member(wire, weight))
            else:
                kind = records.A if address.version == 4 else records.AAAA
                members.append(Member(wire, weight, target, record(kind, ttl_s, address.packed, b"")))
        return members

    def _keep(self, query: Query, service: Service, made: RecordSet) -> None:
        key = query.wire.lower()
        old = self._kept.pop(key, None)
        self._kept_records -= old.records.count if old else 0
        self._kept[key] = _Kept(service, made)
        self._kept_records += made.count
        while self._kept_records > RECORDS_KEPT_MAX and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._kept_records -= dropped.records.count

    # --- everything else ----------------------------------------------------------------------------------------

    def _addresses(self, query: Query, addresses: list[Address], ttl_s: int) -> list[Member]:
        kinds = [(records.A if address.version == 4 else records.AAAA, address) for address in addresses]
        wanted = [(kind, address) for kind, address in kinds if query.qtype in (kind, records.ANY)]
        return [Member(record(kind, ttl_s, address.packed)) for kind, address in wanted]

    def _node(self, query: Query, folded: bytes) -> list[Member] | None:
        node = self._directory.nodes.find(folded)
        if node is None:
            return [] if self._directory.nodes.has_end(folded) else None
        address = self._directory.node_address(node)
        return [] if address is None else self._addresses(query, [address], self._settings.node_ttl_s)

    def _reverse(self, query: Query, address: Address) -> list[Member]:
        if query.qtype not in (records.PTR, records.ANY):
            return []
        nodes, services = self._directory.at(address)
        under = f"{DATACENTER}.{self._settings.domains[0]}"
        found = [f"{node}.node.{under}" for node in nodes] + [f"{service}.service.{under}" for service in services]
        targets = [target for name in found if (target := name_wire(name))]
        return [Member(record(records.PTR, self._settings.node_ttl_s, target)) for target in targets]

    def _apex(self, query: Query, meant: names.Meaning) -> list[Member]:
        ttl_s = self._settings.node_ttl_s
        found = []
        if query.qtype in (records.SOA, records.ANY):
            found.append(Member(record(records.SOA, ttl_s, self._soa(query, meant))))
        if query.qtype in (records.NS, records.ANY):
            found.append(Member(record(records.NS, ttl_s, b"\x02ns" + self._apex_pointer(query, meant))))
        return found

    def _soa(self, query: Query, meant: names.Meaning) -> bytes:
        apex = self._apex_pointer(query, meant)
        serial = self._catalogue.revision & 0xFFFFFFFF
        numbers = (serial, *_SOA_NUMBERS_S, self._settings.negative_ttl_s)
        return b"\x02ns" + apex + b"\x0ahostmaster" + apex + b"".join(number.to_bytes(4, "big") for number in numbers)

    @staticmethod
    def _apex_pointer(query: Query, meant: names.Meaning) -> bytes:
        """A compressed name: the domain, which ends the question's."""
        assert meant.domain is not None
        before = query.labels[: len(query.labels) - len(meant.domain)]
        return (0xC000 | question.HEADER_BYTES + sum(len(label) + 1 for label in before)).to_bytes(2, "big")


def _weight(instance: Instance) -> int:
    """Its weight now: Consul's clients give another for the time that it is at warning."""
    if instance.status == "warning" and EXTRA in instance.extra:
        return details_of(instance).weight_warning
    return instance.weight


def _tags(instance: Instance) -> list[bytes]:
    return [tag.encode().lower() for tag in instance.tags]


def _description(instance: Instance) -> bytes:
    """What TXT says of an instance, as key=value (RFC 1464)."""
    entries = [f"id={instance.id}", f"node={instance.node}"]
    for name in ("version", "zone"):
        value = getattr(instance, name)
        entries += [f"{name}={value}"] if value else []
    entries += [f"tag={tag}" for tag in instance.tags]
    entries += [f"{key}={value}" for key, value in sorted(instance.meta.items())]
    return records.strings(entries)
