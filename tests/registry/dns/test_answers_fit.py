"""What is sent: how much, in which order, and whether it says so when it is not all."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from homeport.client.core import wire
from homeport.registry import DnsSettings
from homeport.registry.fronts.consul.registrations import Details
from homeport.registry.fronts.dns import records
from homeport.registry.fronts.dns.records import Member, RecordSet

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.dns.conftest import Asker, MakeDns, Texts

NAME = "orders.service.homeport"


async def fill(dns_: Asker, instances: int) -> None:
    for number in range(instances):
        await dns_.register("orders", f"o{number}", f"10.0.{number >> 8}.{number & 255}", 8000)


@pytest.mark.parametrize("kind", ["A", "SRV", "TXT"])
@pytest.mark.parametrize("instances", [1, 3, 4, 5, 60, 400])
async def test_tc_is_set_exactly_when_an_answer_is_not_all(dns_: Asker, kind: str, instances: int) -> None:
    await fill(dns_, instances)
    for _ in range(2):  # the second from what is kept
        whole = await dns_(NAME, kind, tcp=True)
        assert len(whole.answer[0]) == instances
        assert not whole.flags & dns.flags.TC
        for edns in (False, 512, 700, 1232, 4096):
            query = dns.message.make_query(NAME, kind, use_edns=edns is not False, payload=int(edns))
            answer = await dns_.send(query)
            found = sum(map(len, answer.answer))
            assert len(answer.wire or b"") <= max(edns, 512)
            assert bool(answer.flags & dns.flags.TC) == (found < instances)
            if edns is False:
                assert found <= 3, "without EDNS at most three"
                assert answer.edns == -1
            else:
                assert answer.edns == 0
            if found < instances and edns:
                assert found > 0 or edns < 700


async def test_glue_is_left_out_before_an_answer_is_cut(dns_: Asker) -> None:
    await fill(dns_, 16)
    answer = await dns_.send(dns.message.make_query(NAME, "SRV", use_edns=0, payload=1232))
    assert len(answer.answer[0]) == 16
    assert 0 < len(answer.additional) <= 16
    small = await dns_.send(dns.message.make_query(NAME, "SRV", use_edns=0, payload=900))
    assert len(small.answer[0]) == 16
    assert not small.flags & dns.flags.TC
    assert len(small.additional) < 16


async def test_an_asker_elsewhere_gets_no_more_than_the_setting_whatever_it_takes(make_dns: MakeDns) -> None:
    async with make_dns(DnsSettings(udp_bytes_max=600)) as dns_:
        await fill(dns_, 100)
        data = dns.message.make_query(NAME, "A", use_edns=0, payload=8000).to_wire()
        for host, most in (("10.1.1.1", 600), ("127.0.0.1", 8000)):
            answer = dns_.front.responder.respond(data, dns_.front.udp_bytes_max(host))
            assert isinstance(answer, bytes)
            assert len(answer) <= most
            assert bool(dns.message.from_wire(answer).flags & dns.flags.TC) == (most == 600)


def test_orders_are_drawn_by_weight() -> None:
    rng = random.Random(7)
    for weights in ((3, 1), (1, 1, 2), (1, 2, 3, 4), (0, 1, 1), (5, 1, 1, 1, 2), (0, 0, 2, 1, 1), (0, 0)):
        members = [
            Member(records.record(records.A, 0, bytes((10, 0, 0, at))), weight) for at, weight in enumerate(weights)
        ]
        made = RecordSet(members, 30)
        first: Counter[int] = Counter()
        last: Counter[int] = Counter()
        draws = 4_000
        for _ in range(draws):
            body = made.whole(rng) if made.heads else made.draw(rng, 60_000, 60_000).wire
            order = body[15::16]
            assert sorted(order) == list(range(len(weights)))
            first[order[0]] += 1
            last[order[-1]] += 1
        total = sum(weights)
        for at, weight in enumerate(weights):
            share = weight / total if total else 1 / len(weights)
            assert abs(first[at] / draws - share) < 0.04, (weights, first)
        if total and 0 in weights:
            assert all(weights[at] == 0 for at in last), "what has no weight comes last"


async def test_every_instance_comes_first_sometimes_and_all_are_there(dns_: Asker, rows: Texts) -> None:
    for instances in (3, 9):
        await fill(dns_, instances)
        seen = {str((await dns_(NAME)).answer[0][0]) for _ in range(120)}
        assert len(seen) == instances


async def test_weights_follow_what_consul_clients_say_for_warning(dns_: Asker, rows: Texts) -> None:
    extra = {"consul": wire.encode(Details(weight_warning=2))}
    await dns_.register("orders", "a", "10.0.0.1", weight=10, extra=extra)
    await dns_.register("orders", "b", "10.0.0.2", weight=0)
    assert [row.split()[2:4] for row in rows(await dns_(NAME, "SRV"))] == [["1", "0"], ["1", "10"]]
    await dns_.set_status("a", "warning")
    assert [row.split()[2:4] for row in rows(await dns_(NAME, "SRV"))] == [["1", "0"], ["1", "2"]]


async def test_two_instances_at_one_address_are_one_record_and_two_servers(dns_: Asker, rows: Texts) -> None:
    await dns_.register("orders", "a", "10.0.0.1", 80)
    await dns_.register("orders", "b", "10.0.0.1", 81)
    assert len(rows(await dns_(NAME))) == 1
    answer = await dns_(NAME, "SRV")
    assert (len(rows(answer)), len(rows(answer, "additional"))) == (2, 1)


async def test_edns_of_another_version_is_badvers_and_options_are_no_obstacle(dns_: Asker) -> None:
    await fill(dns_, 1)
    answer = await dns_(NAME, edns=1)
    assert answer.rcode() == dns.rcode.BADVERS
    assert answer.edns == 0
    options = [dns.edns.ECSOption("192.0.2.0", 24), dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")]
    answer = await dns_(NAME, edns=0, options=options)
    assert len(answer.answer[0]) == 1
    assert answer.options == (), "no client subnet and no cookie of ours"
