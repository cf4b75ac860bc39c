"""Garbage, mutated questions and every shape of valid one: each is answered rightly or not at all, and costs nothing.

The oracle is dnspython: it reads every answer, and builds from the instances what the answer should hold.
"""

from __future__ import annotations

import logging
import random
from typing import Any, Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeport.client.core import wire
from homeport.client.core.backoff import Rng
from homeport.client.core.errors import NotFound
from homeport.client.core.model import Instance
from homeport.registry import DnsSettings
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.head import Head
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.txn import Put, Txn
from homeport.registry.fronts.dns.directory import Directory
from homeport.registry.fronts.dns.responder import TCP_BYTES_MAX, Responder
from homeport.registry.queries import Executed

SEED: Final = 20_260_226
NAMES: Final = ("orders", "Users", "api.v2", "empty")
TTL_S: Final = 3


def responder(instances: list[Instance]) -> Responder:
    """A responder over a catalogue of these, with nothing around it."""
    mvcc = Mvcc()
    head = Head(mvcc)
    catalogue = Catalogue()
    puts = tuple(Put(keys.instance(one.service, *one.key), wire.encode(one)) for one in instances)
    for put in puts:
        changes = head.decide(Txn(then=(put,))).changes
        mvcc.apply(head.revision, changes)
        head.settle(head.revision, changes)
        catalogue.apply(head.revision, changes)
    told = DnsSettings(service_ttl_s={"*": TTL_S})
    directory = Directory(catalogue)
    return Responder(catalogue, directory, NoQueries(), told, random.Random(SEED), node="home", at=[])


class NoQueries:
    """There are none."""

    def execute(self, asked: str, _rng: Rng, /) -> Executed:
        raise NotFound(asked)


SOME: Final = [
    Instance(
        service=service, id=f"{service}-{number}", node="home", address=f"10.0.{at}.{number}", port=80, weight=number
    )
    for at, service in enumerate(NAMES[:3])
    for number in range(1, 3 + 3 * at)
]


def both_ways(it: Responder, data: bytes, udp_bytes_max: int) -> list[bytes]:
    """What it answers: at first, and when it has been asked before."""
    found = []
    for _ in range(2):
        answer = it.quick(data, udp_bytes_max) or it.respond(data, udp_bytes_max)
        assert answer is None or isinstance(answer, bytes)
        if answer is not None:
            found.append(answer)
    return found


def check(data: bytes, answer: bytes) -> None:
    """Whatever was asked, an answer is a message that answers it and no larger than it may be."""
    read = dns.message.from_wire(answer)
    assert answer[:2] == data[:2]
    assert read.flags & dns.flags.QR
    assert not answer[2] & 0x78 or read.rcode() == dns.rcode.NOTIMP
    assert len(answer) <= 1232
    if read.question:
        question = read.question[0].to_wire  # noqa: F841 - it can be written
        assert data[12:].startswith(answer[12 : 12 + len(read.question[0].name.to_wire() or b"") + 4])


questions: Any = st.builds(
    dns.message.make_query,
    st.sampled_from(
        ["orders.service.homeport", "_users._tcp.service.homeport", "api.v2.service.homeport", "homeport", "x.example"]
    ),
    st.sampled_from(["A", "AAAA", "SRV", "TXT", "ANY", "SOA", "HTTPS"]),
    use_edns=st.sampled_from([None, 0, 1]),
    want_dnssec=st.booleans(),
    payload=st.sampled_from([0, 512, 1232, 65_535]),
)
mutations = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "repeat"]), st.integers(0, 80), st.binary(min_size=1, max_size=4)
    ),
    max_size=4,
)


def mutated(data: bytes, steps: list[tuple[str, int, bytes]]) -> bytes:
    for what, at, some in steps:
        match what:
            case "set":
                data = data[:at] + some + data[at + len(some) :]
            case "cut":
                data = data[: max(at, 1)]
            case "insert":
                data = data[:at] + some + data[at:]
            case _:
                data += data[at:]
    return data


def test_mutated_questions_are_answered_rightly_or_not_at_all(caplog: pytest.LogCaptureFixture) -> None:
    it = responder(SOME)

    @settings(max_examples=1_500, deadline=None, derandomize=True, print_blob=True)
    @given(questions, mutations)
    def run(question: dns.message.Message, steps: list[tuple[str, int, bytes]]) -> None:
        data = mutated(question.to_wire(), steps)
        for answer in both_ways(it, data, 1232):
            check(data, answer)

    with caplog.at_level(logging.ERROR):
        run()
    assert caplog.records == [], "and none of them met a defect"


@pytest.mark.long
@settings(max_examples=5_000, deadline=None, print_blob=True)
@given(questions, mutations)
def test_new_mutations_are_answered_rightly_or_not_at_all(
    question: dns.message.Message, steps: list[tuple[str, int, bytes]]
) -> None:
    data = mutated(question.to_wire(), steps)
    for answer in both_ways(_SHARED, data, 1232):
        assert dns.message.from_wire(answer).rcode() != dns.rcode.SERVFAIL
        check(data, answer)


@settings(max_examples=500, deadline=None, derandomize=True, print_blob=True)
@given(st.binary(max_size=80))
def test_garbage_is_refused_or_ignored(data: bytes) -> None:
    for answer in both_ways(_SHARED, data, 1232):
        check(data, answer)


_SHARED: Final = responder(SOME)


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (b"\1\2\x80\0\0\1\0\0\0\0\0\0\0\0\1\0\1", None),  # an answer: to answer those is how loops begin
        (b"\1\2\x28\0\0\1\0\0\0\0\0\0\0\0\1\0\1", dns.rcode.NOTIMP),  # an update
        (b"\1\2\0\0\0\0\0\0\0\0\0\0", dns.rcode.FORMERR),  # no question
        (b"\1\2\0\0\0\2\0\0\0\0\0\0\0\0\1\0\1\0\0\1\0\1", dns.rcode.FORMERR),  # two
        (b"\1\2\0\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1", dns.rcode.FORMERR),  # a name that points at itself
        (b"\1\2\0\0\0\1\0\0\0\0\0\0\x3fab", dns.rcode.FORMERR),  # a label that goes on beyond the end
        (b"\1\2\0\0\0\1\0\0\0\0\0\0" + b"\x3f" + b"a" * 63 + b"\0\0\1\0\1trailing", dns.rcode.FORMERR),
        (b"\1\2\0\0\0\1\0\0\0\0\0\0" + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", dns.rcode.FORMERR),  # too long
        (b"\1\2\0\0\0\1\0\0\0\0\0\0\0\0\1\0\3", dns.rcode.REFUSED),  # of class CHAOS
        (b"\1\2\0\0\0\1\0\0\0\0\0\0\x08homeport\0\0\xfc\0\1", dns.rcode.REFUSED),  # a zone transfer
    ],
)
def test_what_is_no_question_gets_the_code_that_says_so(data: bytes, rcode: int | None) -> None:
    answers = both_ways(_SHARED, data, 1232)
    assert [dns.message.from_wire(answer).rcode() for answer in answers] == ([] if rcode is None else [rcode] * 2)


def test_a_signed_question_is_told_that_there_are_no_keys() -> None:
    import dns.tsig
    import dns.tsigkeyring

    query = dns.message.make_query("orders.service.homeport", "A")
    query.use_tsig(dns.tsigkeyring.from_text({"k.": "c2VjcmV0"}))
    answers = both_ways(_SHARED, query.to_wire(), 1232)
    assert {dns.message.from_wire(answer).rcode() for answer in answers} == {dns.rcode.NOTAUTH}


addresses = st.one_of(
    st.integers(1, 5).map(lambda last: f"10.0.0.{last}"),
    st.integers(1, 3).map(lambda last: f"fd00::{last}"),
)
instances = st.lists(
    st.builds(
        Instance,
        service=st.sampled_from(("orders", "users")),
        id=st.integers(0, 30).map(str),
        node=st.just("home"),
        address=addresses,
        port=st.integers(0, 3),
        weight=st.integers(0, 3),
        tags=st.sampled_from(((), ("blue",), ("Blue", "green"))),
    ),
    max_size=12,
    unique_by=lambda one: one.id,
)


def expected(found: list[Instance], name: str, kind: str) -> dns.rrset.RRset:
    """The record set that dnspython makes of the instances."""
    made: set[str] = set()
    for one in found:
        six = ":" in one.address
        if kind == "SRV":
            owner = dns.ipv6.inet_aton(one.address) if six else dns.ipv4.inet_aton(one.address)
            made.add(f"1 {one.weight} {one.port} {owner.hex()}.addr.dc1.homeport.")
        elif (kind == "AAAA") == six:
            made.add(one.address)
    return dns.rrset.from_text(name, TTL_S, "IN", kind, *made)


@settings(max_examples=200, deadline=None, derandomize=True, print_blob=True)
@given(
    instances,
    st.sampled_from(("orders", "users")),
    st.sampled_from(("", "blue")),
    st.sampled_from(("A", "AAAA", "SRV")),
    st.sampled_from((None, 512, 1232)),
    st.booleans(),
)
def test_answers_are_those_that_dnspython_makes_of_the_instances(
    there: list[Instance], service: str, tag: str, kind: str, edns: int | None, tcp: bool
) -> None:
    it = responder(there)
    name = f"{tag}.{service}.service.homeport." if tag else f"{service}.service.homeport."
    tagged = [one for one in there if one.service == service and (not tag or tag in map(str.lower, one.tags))]
    wanted = expected(tagged, name, kind)
    use_edns = edns is not None
    query = dns.message.make_query(name, kind, use_edns=use_edns, payload=edns or 0)
    most = TCP_BYTES_MAX if tcp else 1232
    for data in both_ways(it, query.to_wire(), most):
        answer = dns.message.from_wire(data)
        assert query.is_response(answer)
        assert answer.rcode() == (dns.rcode.NOERROR if tagged else dns.rcode.NXDOMAIN)
        assert (answer.edns == 0) == use_edns
        found = answer.get_rrset("ANSWER", dns.name.from_text(name), dns.rdataclass.IN, dns.rdatatype.from_text(kind))
        rows = set(found or ())
        assert rows <= set(wanted)
        assert bool(answer.flags & dns.flags.TC) == (len(rows) < len(wanted))
        if not tcp and not use_edns:
            assert len(rows) == min(3, len(wanted))
        elif tcp or edns == 1232:
            assert len(rows) == len(wanted)
        if found:
            assert found.ttl == TTL_S
        assert len(data) <= (TCP_BYTES_MAX if tcp else edns or 512)
        targets = {str(row.target) for row in rows} if kind == "SRV" else set()
        assert {str(extra.name) for extra in answer.additional} <= targets
        if tcp:
            assert {str(extra.name) for extra in answer.additional} == targets
