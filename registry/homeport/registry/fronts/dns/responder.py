"""From a question to its answer: pure, synchronous, with what was made for earlier questions kept.

A question that was asked before, about a service that has not changed since, costs a dict access: its records are
there in every order. All others are read, looked up and put together. Names outside the domains are nobody's here: they
are passed to the recursors, if there are any, or refused.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final, Protocol

import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.core.errors import InvalidArgument, NotFound
from homeport.client.core.model import Instance
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.entries import Service
from homeport.registry.fronts.consul.agent import DATACENTER
from homeport.registry.fronts.consul.durations import parse_duration
from homeport.registry.fronts.dns import names, question, records
from homeport.registry.fronts.dns.directory import Address, Directory, address_of
from homeport.registry.fronts.dns.instances import (
    addresses,
    alias_of,
    descriptions,
    node_descriptions,
    places,
    servers,
    tags_of,
)
from homeport.registry.fronts.dns.question import Malformed, Query
from homeport.registry.fronts.dns.records import Member, RecordSet, name_wire, record
from homeport.registry.fronts.dns.settings import DnsSettings
from homeport.registry.queries import Executed

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
_MADE_AT: Final = "dns"  # under which a service keeps a mark that goes when it changes


class Alias(msgspec.Struct, frozen=True):
    """What a name that was asked for is another name of: the target as it stands in a record."""

    target: bytes
    ttl_s: int

    @property
    def labels(self) -> tuple[bytes, ...]:
        """The target in lower case, without the root."""
        labels, at = [], 0
        lower = self.target.lower()  # no length of a label is a letter's code
        while lower[at]:
            labels.append(lower[at + 1 : at + 1 + lower[at]])
            at += 1 + lower[at]
        return tuple(labels)


class Forward(msgspec.Struct, frozen=True):
    """A question that others answer, if it is an alias's, in part."""

    query: Query
    alias: Alias | None = None


class PreparedQueries(Protocol):
    """Who carries out prepared queries."""

    def execute(self, asked: str, rng: Rng, /) -> Executed:
        """The instances that a query admits, by its name.

        Raises:
            NotFound: there is no such query.
            InvalidArgument: it is a template that comes to nothing for this name.
        """


class _Kept:
    """A record set that was made for a question, good as long as its service keeps answers made at that time."""

    __slots__ = ("answers", "made_at", "records")

    def __init__(self, service: Service, made: RecordSet) -> None:
        self.answers = service.answers
        self.made_at = service.answer(_MADE_AT, lambda _: object())
        self.records = made

    @property
    def good(self) -> bool:
        return self.answers.get(_MADE_AT) is self.made_at


class Responder:
    """Answers questions from the catalogue.

    Args:
        directory: follows the catalogue.
        node: the name of the node that this is.
        at: the addresses that the front is found at, for the names of that node and of the domain's server.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        directory: Directory,
        queries: PreparedQueries,
        settings: DnsSettings,
        rng: Rng,
        *,
        node: str,
        at: list[Address],
    ) -> None:
        self._queries = queries
        self._own_node = node.encode().lower()
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
        if kept is None or kept.answers.get(_MADE_AT) is not kept.made_at:
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
        if kept is not None and kept.good:
            return self._answer(query, kept.records, udp_bytes_max)
        meant = names.meaning(query.labels, self._domains, self._datacenter)
        if meant.domain is None:
            if meant.address is not None and (pointers := self._reverse(query, meant.address)):
                return self._answer(query, self._set(query, pointers), udp_bytes_max)
            if self._settings.recursors and query.rd:
                return Forward(query)
            return self.failure(query, question.REFUSED)
        members: list[Member] | None
        match meant.kind:
            case "service":
                return self._service(query, meant, udp_bytes_max)
            case "query":
                return self._query(query, meant, udp_bytes_max)
            case "node":
                return self._node(query, meant, udp_bytes_max)
            case "addr":
                address = names.address_in(meant.names)
                ttl_s = self._settings.node_ttl_s
                members = None if address is None else addresses([(address, 1)], query.qtype, ttl_s)
            case "ns":
                members = self._our_addresses(query)
            case "apex":
                members = self._apex(query, meant)
            case "between":
                members = []
            case _:
                members = None
        return self._members(query, meant, members, udp_bytes_max)

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

    def _answer(self, query: Query, made: RecordSet, udp_bytes_max: int, *, ordered: bool = False) -> bytes:
        room, records_max = self.room(query, udp_bytes_max)
        body = made.draw(None if ordered else self._rng, room, records_max)
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

    # --- services -----------------------------------------------------------------------------------------------

    def _service(self, query: Query, meant: names.Meaning, udp_bytes_max: int) -> bytes | Forward:
        exists = self._directory.services.has_end(b".".join(meant.names))
        exists = exists or (
            len(meant.names) == 1 and meant.names[0][:1] == b"_"
        )  # `_tcp`, on which `_orders._tcp` stands
        for folded, tag in names.service_readings(meant.names):
            name = self._directory.services.find(folded)
            service = None if name is None else self._catalogue.services.get(name)
            if service is None:
                continue
            serving = [one for one in service.instances(passing=True) if self._serves(one)]
            tagged = [one for one in serving if not tag or tag in tags_of(one)]
            if tagged:
                made = self._serving(query, meant, tagged, self._settings.ttl_s_of(service.name))
                if isinstance(made, RecordSet) and query.qtype in _KEPT_KINDS and all(one.address for one in tagged):
                    self._keep(query, service, made)  # those of a node's address would change with the node
                return self._told(query, meant, made, udp_bytes_max)
            # A tag with dots in it makes names without records of their own.
            exists = exists or any(each.endswith(b"." + tag) for one in serving for each in tags_of(one))
        return self._negative(query, meant, exists=exists)

    def _serves(self, instance: Instance) -> bool:
        return instance.status == "passing" or not self._settings.only_passing

    def _query(self, query: Query, meant: names.Meaning, udp_bytes_max: int) -> bytes | Forward:
        """What a prepared query admits, the nearest first if it asks for those."""
        try:
            done = self._queries.execute(b".".join(names.query_name(meant.names)).decode(), self._rng)
            ttl_s = int(parse_duration(done.query.dns.ttl)) if done.query.dns.ttl else None
        except (NotFound, InvalidArgument, ValueError):  # unknown, or a template that comes to nothing for this name
            return self._negative(query, meant, exists=_is_protocol(meant.names))
        if ttl_s is None:
            ttl_s = self._settings.ttl_s_of(done.query.service.service)
        instances = [entry.seen for entry in done.entries]
        if not instances:
            return self._negative(query, meant, exists=False)
        made = self._serving(query, meant, instances, ttl_s)
        return self._told(query, meant, made, udp_bytes_max, ordered=bool(done.query.service.near))

    def _serving(
        self, query: Query, meant: names.Meaning, instances: list[Instance], ttl_s: int
    ) -> RecordSet | Alias | None:
        """What is said of these instances: records, another name, or nothing of the kind that was asked for."""
        found = places(instances, self._directory.node_address)
        match query.qtype:
            case records.SRV:
                assert meant.domain is not None
                suffix = b".".join((b".addr", self._datacenter, *meant.domain)).decode()
                members = servers(found, suffix, ttl_s)
            case records.TXT:
                members = descriptions(found, ttl_s)
            case records.A | records.AAAA | records.ANY | records.CNAME:
                target = alias_of(found, self._rng)
                if target is not None:
                    return Alias(target, ttl_s)
                at = [(place.address, place.weight) for place in found if place.address is not None]
                members = addresses(at, query.qtype, ttl_s)
            case _:
                members = []
        return self._set(query, members) if members else None

    def _told(
        self,
        query: Query,
        meant: names.Meaning,
        made: RecordSet | Alias | None,
        udp_bytes_max: int,
        *,
        ordered: bool = False,
    ) -> bytes | Forward:
        if made is None:
            return self._negative(query, meant, exists=True)
        if isinstance(made, RecordSet):
            return self._answer(query, made, udp_bytes_max, ordered=ordered)
        ours = names.meaning(made.labels, self._domains, self._datacenter).domain is not None
        if query.qtype in (records.A, records.AAAA) and (ours or (self._ra and query.rd)):
            return Forward(query, made)
        alias = Member(record(records.CNAME, made.ttl_s, made.target))
        return self._answer(query, self._set(query, [alias]), udp_bytes_max)

    def _set(self, query: Query, members: list[Member]) -> RecordSet:
        return RecordSet(members, question.HEADER_BYTES + len(query.wire), ra=bool(self._ra))

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

    def _node(self, query: Query, meant: names.Meaning, udp_bytes_max: int) -> bytes | Forward:
        folded = b".".join(meant.names)
        ttl_s = self._settings.node_ttl_s
        name = self._directory.nodes.find(folded)
        if name is None and folded == self._own_node:  # it is there, whatever is registered
            return self._members(query, meant, self._our_addresses(query), udp_bytes_max)
        if name is None:
            return self._negative(query, meant, exists=self._directory.nodes.has_end(folded))
        if query.qtype == records.TXT:
            return self._members(query, meant, node_descriptions(self._directory.node_meta(name), ttl_s), udp_bytes_max)
        text = self._directory.node_address(name)
        address = address_of(text)
        if address is None and query.qtype in (records.A, records.AAAA, records.ANY, records.CNAME):
            target = name_wire(text) if text else None
            return self._told(query, meant, None if target is None else Alias(target, ttl_s), udp_bytes_max)
        members = [] if address is None else addresses([(address, 1)], query.qtype, ttl_s)
        return self._members(query, meant, members, udp_bytes_max)

    def _our_addresses(self, query: Query) -> list[Member]:
        return addresses([(address, 1) for address in self._at], query.qtype, self._settings.node_ttl_s)

    def _members(self, query: Query, meant: names.Meaning, members: list[Member] | None, udp_bytes_max: int) -> bytes:
        """An answer of these; none of them is NODATA, None NXDOMAIN."""
        if not members:
            return self._negative(query, meant, exists=members is not None)
        return self._answer(query, self._set(query, members), udp_bytes_max)

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


def _is_protocol(labels: names.Labels) -> bool:
    """Whether this is the `_tcp` that `_orders._tcp` is under: a name without records, but a name."""
    return len(labels) == 1 and labels[0][:1] == b"_"
