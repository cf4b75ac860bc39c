"""Every kind of name: what it answers, what is there without records, and what is not there."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import pytest

from homeport.client.core import wire
from homeport.client.core.messages import Register
from homeport.client.core.model import Instance
from homeport.mesh.testing import virtual_time
from homeport.registry import DnsSettings, Registry
from homeport.registry.core import keys
from homeport.registry.core.queries import Asked, Dns, Query, Template
from homeport.registry.core.txn import Delete, Put, Txn
from homeport.registry.peers import NoOutlet, Peer

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.dns.conftest import Asker, MakeDns, Texts


async def test_a_service_has_the_addresses_of_its_instances_by_family(dns_: Asker, rows: Texts) -> None:
    await dns_.register("orders", "a", "10.0.0.1")
    await dns_.register("orders", "b", "fd00::2")
    name = "orders.service.homeport."
    assert rows(await dns_(name, "A")) == [f"{name} A 10.0.0.1"]
    assert rows(await dns_(name, "AAAA")) == [f"{name} AAAA fd00::2"]
    assert rows(await dns_(name, "ANY")) == [f"{name} A 10.0.0.1", f"{name} AAAA fd00::2"]


async def test_srv_names_each_instance_and_brings_its_address(dns_: Asker, rows: Texts) -> None:
    await dns_.register("orders", "a", "10.0.0.1", 81, weight=5)
    await dns_.register("orders", "b", "fd00::2", 82)
    await dns_.register("orders", "c", "db.example.com", 83)
    answer = await dns_("orders.service.homeport", "SRV", edns=True)
    four = "0a000001.addr.dc1.homeport."
    six = "fd000000000000000000000000000002.addr.dc1.homeport."
    assert rows(answer) == [
        f"orders.service.homeport. SRV 1 1 82 {six}",
        "orders.service.homeport. SRV 1 1 83 db.example.com.",
        f"orders.service.homeport. SRV 1 5 81 {four}",
    ]
    assert rows(answer, "additional") == [f"{four} A 10.0.0.1", f"{six} AAAA fd00::2"]
    for target in (four, six):  # and each can be asked for by itself
        asked = rows(await dns_(target, "ANY"))
        assert asked == [row for row in rows(answer, "additional") if row.startswith(target)]


async def test_tags_choose_among_instances_and_rfc_2782_names_say_the_same(dns_: Asker, rows: Texts) -> None:
    await dns_.register("orders", "a", "10.0.0.1", tags=("V1", "dotted.tag"))
    await dns_.register("orders", "b", "10.0.0.2", tags=("v2",))
    for name, addresses in {
        "v1.orders.service.homeport.": ["10.0.0.1"],
        "_orders._v2.service.homeport.": ["10.0.0.2"],
        "_orders._tcp.service.homeport.": ["10.0.0.1", "10.0.0.2"],
        "dotted.tag.orders.service.homeport.": ["10.0.0.1"],
        "orders.service.dc1.homeport.": ["10.0.0.1", "10.0.0.2"],
        "v1.orders.service.dc1.dc.homeport.": ["10.0.0.1"],
    }.items():
        assert rows(await dns_(name)) == [f"{name} A {address}" for address in addresses]


async def test_names_are_found_in_any_case_and_come_back_as_they_were_asked(dns_: Asker) -> None:
    await dns_.register("Orders", "a", "10.0.0.1")
    for name in ("orders.service.homeport.", "oRDErs.SerVice.HOMEport.", "ORDERS.SERVICE.HOMEPORT."):
        for _ in range(2):  # the second is answered from what the first left
            answer = await dns_(name)
            assert str(answer.question[0].name) == name
            assert str(answer.answer[0].name) == name


async def test_a_service_with_dots_in_its_name_is_found_and_so_is_the_way_to_it(dns_: Asker, rows: Texts) -> None:
    await dns_.register("api.v2", "a", "10.0.0.1", node="db.example.com")
    assert rows(await dns_("api.v2.service.homeport")) == ["api.v2.service.homeport. A 10.0.0.1"]
    assert rows(await dns_("db.example.com.node.homeport")) == ["db.example.com.node.homeport. A 10.0.0.1"]
    for between in ("v2.service", "example.com.node", "com.node"):
        answer = await dns_(f"{between}.homeport")
        assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])


async def test_txt_tells_what_is_known_of_an_instance(dns_: Asker, rows: Texts) -> None:
    meta = {"team": "pictures", "long": "x" * 300}
    await dns_.register("orders", "a", "10.0.0.1", tags=("v1",), meta=meta, version="1.4", zone="z")
    (row,) = rows(await dns_("orders.service.homeport", "TXT"))
    assert row.endswith('TXT "id=a" "node=home" "version=1.4" "zone=z" "tag=v1" "team=pictures"')


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("orders.service.homeport", "AAAA"),
        ("orders.service.homeport", "MX"),
        ("orders.service.homeport", "HTTPS"),
        ("homeport", "A"),
        ("dc1.homeport", "A"),
        ("dc.homeport", "A"),
        ("service.homeport", "NS"),
        ("service.dc1.homeport", "SRV"),
        ("node.homeport", "A"),
        ("_tcp.service.homeport", "A"),
        ("home.node.homeport", "TXT"),
        ("0a000001.addr.homeport", "AAAA"),
    ],
)
async def test_what_is_there_without_such_records_is_no_error_and_says_for_how_long(
    make_dns: MakeDns, name: str, kind: str
) -> None:
    async with make_dns(DnsSettings(negative_ttl_s=7)) as dns_:
        await dns_.register("orders", "a", "10.0.0.1")
        answer = await dns_(name, kind)
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])
    (soa,) = answer.authority
    assert (str(soa.name), soa.ttl, soa[0].minimum) == ("homeport.", 7, 7)


@pytest.mark.parametrize(
    "name",
    [
        "nothing.service.homeport",
        "v9.orders.service.homeport",
        "_orders._v9.service.homeport",
        "nobody.node.homeport",
        "orders.service.dc2.homeport",
        "orders.service.dc2.dc.homeport",
        "zz.addr.homeport",
        "0a0000011.addr.homeport",
        "orders.homeport",
        "x.query.homeport",
        "\\255\\254.service.homeport",
    ],
)
async def test_what_is_not_there_is_nxdomain_with_the_soa_record(dns_: Asker, name: str) -> None:
    await dns_.register("orders", "a", "10.0.0.1")
    answer = await dns_(name)
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert str(answer.authority[0].name) == "homeport."
    assert answer.flags & dns.flags.AA


async def test_the_domain_itself_has_soa_and_ns_records(dns_: Asker, rows: Texts) -> None:
    assert rows(await dns_("homeport", "NS")) == ["homeport. NS ns.homeport."]
    (soa,) = rows(await dns_("homeport", "SOA"))
    assert soa.startswith("homeport. SOA ns.homeport. hostmaster.homeport. ")
    assert len(rows(await dns_("homeport", "ANY"))) == 2
    assert rows(await dns_("ns.homeport")) == ["ns.homeport. A 127.0.0.1"]


async def test_an_address_turned_around_names_its_node_and_its_services(dns_: Asker, rows: Texts) -> None:
    await dns_.register("orders", "a", "10.0.0.1")
    await dns_.register("users", "b", "fd00::2")
    assert rows(await dns_("1.0.0.10.in-addr.arpa", "PTR")) == [
        "1.0.0.10.in-addr.arpa. PTR home.node.dc1.homeport.",
        "1.0.0.10.in-addr.arpa. PTR orders.service.dc1.homeport.",
    ]
    six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa."
    assert f"{six} PTR users.service.dc1.homeport." in rows(await dns_(six, "PTR"))
    for elsewhere in ("2.0.0.10.in-addr.arpa", "0.10.in-addr.arpa", "x.0.0.10.in-addr.arpa", "1.ip6.arpa"):
        assert (await dns_(elsewhere, "PTR")).rcode() == dns.rcode.REFUSED


async def test_only_instances_that_can_take_traffic_are_named(make_dns: MakeDns, rows: Texts) -> None:
    for only_passing in (False, True):
        async with make_dns(DnsSettings(only_passing=only_passing)) as dns_:
            for number, status in enumerate(("passing", "warning", "critical", "maintenance", "draining")):
                state = status if status in ("maintenance", "draining") else "up"
                await dns_.register("orders", status, f"10.0.0.{number}", state=state)
            for status in ("passing", "warning", "critical"):
                await dns_.set_status(status, status)
            found = [row.split()[-1] for row in rows(await dns_("orders.service.homeport"))]
            assert found == (["10.0.0.0"] if only_passing else ["10.0.0.0", "10.0.0.1"])
            await dns_.set_status("passing", "critical")
            await dns_.set_status("warning", "critical")
            assert (await dns_("orders.service.homeport")).rcode() == dns.rcode.NXDOMAIN


async def test_other_domains_are_answered_in_their_own_name(make_dns: MakeDns, rows: Texts) -> None:
    async with make_dns(DnsSettings(domains=("homeport", "consul", "inner.homeport"))) as dns_:
        await dns_.register("orders", "a", "10.0.0.1")
        (srv,) = rows(await dns_("orders.service.consul", "SRV"))
        assert srv.endswith("80 0a000001.addr.dc1.consul.")
        assert rows(await dns_("orders.service.inner.homeport")) == ["orders.service.inner.homeport. A 10.0.0.1"]
        assert str((await dns_("x.service.consul")).authority[0].name) == "consul."
        assert (await dns_("orders.service.example")).rcode() == dns.rcode.REFUSED


async def test_ttls_are_those_of_the_longest_pattern_that_matches(make_dns: MakeDns) -> None:
    ttls = {"*": 1, "web*": 2, "web-front*": 3, "web-front": 4}
    async with make_dns(DnsSettings(service_ttl_s=ttls, node_ttl_s=9)) as dns_:
        for service, ttl_s in {"orders": 1, "web": 2, "web-front-1": 3, "web-front": 4}.items():
            await dns_.register(service, service, "10.0.0.1")
            answer = await dns_(f"{service}.service.homeport", "SRV")
            assert {rrset.ttl for rrset in answer.answer + answer.additional} == {ttl_s}
        assert (await dns_("home.node.homeport")).answer[0].ttl == 9


async def test_what_changes_is_seen_by_the_next_question(dns_: Asker, rows: Texts) -> None:
    name = "orders.service.homeport."
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        await dns_.register("orders", "a", address)
        for _ in range(2):
            assert rows(await dns_(name)) == [f"{name} A {address}"]
        assert rows(await dns_("home.node.homeport")) == [f"home.node.homeport. A {address}"]
    await dns_.deregister("a")
    assert (await dns_(name)).rcode() == dns.rcode.NXDOMAIN
    assert rows(await dns_("home.node.homeport")) == ["home.node.homeport. A 127.0.0.1"], "the agent's own is there"
    assert (await dns_("3.0.0.10.in-addr.arpa", "PTR")).rcode() == dns.rcode.REFUSED
    await dns_.register("orders", "a", "10.0.0.4")
    assert rows(await dns_(name)) == [f"{name} A 10.0.0.4"]


async def test_a_node_is_where_it_is_registered_and_tells_its_metadata(dns_: Asker, rows: Texts) -> None:
    catalogue = {
        "db-1": ("10.1.0.1", {"rack": "7", "rfc1035-note": "plain words"}),
        "Far.example.com": ("host.example.net", {}),
    }
    for node, (address, meta) in catalogue.items():
        one = Instance(service="", id="", node=node, address=address, meta=meta)
        await dns_.registry.store.commit(Txn(then=(Put(keys.node(node), wire.encode(one)),)))
    assert rows(await dns_("DB-1.node.dc1.homeport")) == ["DB-1.node.dc1.homeport. A 10.1.0.1"]
    assert rows(await dns_("db-1.node.homeport", "TXT")) == [
        'db-1.node.homeport. TXT "plain words"',
        'db-1.node.homeport. TXT "rack=7"',
    ]
    assert rows(await dns_("1.0.1.10.in-addr.arpa", "PTR")) == ["1.0.1.10.in-addr.arpa. PTR db-1.node.dc1.homeport."]
    assert rows(await dns_("far.example.com.node.homeport")) == [
        "far.example.com.node.homeport. CNAME host.example.net."
    ]
    await dns_.registry.store.commit(Txn(then=(Delete(keys.node("db-1")),)))
    assert (await dns_("db-1.node.homeport")).rcode() == dns.rcode.NXDOMAIN


async def test_a_prepared_query_answers_by_its_name_with_its_ttl(dns_: Asker, rows: Texts) -> None:
    for number, tag in enumerate(("v1", "v2", "v2")):
        await dns_.register("orders", f"o{number}", f"10.0.0.{number}", tags=(tag,), node=f"n{number}")
    queries = dns_.registry.operations.queries
    asked = Asked(service="orders", tags=("v2",), near="n2")
    await queries.keep(Query(id="1", name="Canary.orders", service=asked, dns=Dns(ttl="7s")), new=True)
    template = Template(type="name_prefix_match")
    await queries.keep(Query(id="2", name="any-", service=Asked(service="${name.suffix}"), template=template), new=True)
    for _ in range(10):
        answer = await dns_("canary.orders.query.homeport")
        assert [str(rdata) for rdata in answer.answer[0]] == ["10.0.0.2", "10.0.0.1"], "the nearest first"
        assert answer.answer[0].ttl == 7
    assert len(rows(await dns_("any-orders.query.dc1.homeport", "SRV"))) == 3
    for name in ("any-nothing.query.homeport", "other.query.homeport"):
        assert (await dns_(name)).rcode() == dns.rcode.NXDOMAIN


@virtual_time()
async def test_what_fell_silent_all_at_once_is_named_until_it_is_let_go() -> None:
    async with Registry(node="home", rng=random.Random(1)) as registry:
        host, port = ((await registry.serve(dns="127.0.0.1:8600")).dns or "").split(":")
        instances = [Instance(service="web", id=f"w{at}", address=f"10.0.0.{at}", ttl_s=5.0) for at in range(30)]
        for one in instances:
            await registry.operations.registrations.register(Register(instance=one), Peer(NoOutlet()))

        async def rcode() -> int:
            reader, writer = await asyncio.open_connection(host, int(port))
            wire_ = dns.message.make_query("web.service.homeport", "A").to_wire()
            writer.write(len(wire_).to_bytes(2, "big") + wire_)
            answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            writer.close()
            return dns.message.from_wire(answer).rcode()

        assert await rcode() == dns.rcode.NOERROR
        await asyncio.sleep(7)
        assert registry.catalogue.stale
        assert await rcode() == dns.rcode.NOERROR
        await asyncio.sleep(6)
        assert not registry.catalogue.stale
        assert await rcode() == dns.rcode.NXDOMAIN
