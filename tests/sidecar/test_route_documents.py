"""Documents of routes: what is refused and why, what stays in force, and what a router decides from them."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from homeport.client.core.errors import InvalidArgument
from homeport.sidecar.core.rates import TokenBucket
from homeport.sidecar.core.route_table import RouteTable
from homeport.sidecar.core.router import Router
from homeport.sidecar.core.routing import DOCUMENT_BYTES_MAX, converted, encoded, parsed

SEED = 7
GOOD = b'{"routes": [{"name": "all", "to": [{"subset": {"version": "1"}}]}]}'


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("", "truncated"),
        ("[]", "Expected `object`"),
        ('{"route": []}', "unknown field `route`"),
        ('{"routes": [{"to": [{"wieght": 1}]}]}', "unknown field `wieght` - at `$.routes[0].to[0]`"),
        ('{"routes": [{"to": [{"weight": -1}]}]}', "to.weight is -1.0; allowed: 0 to 1e+06"),
        ('{"routes": [{"to": [{"weight": 0}]}]}', "no destination with a weight over 0"),
        ('{"routes": [{"to": [{"subset": {}}]}]}', "a subset must name"),
        ('{"routes": [{"match": {"path": "/a", "prefix": "/b"}}]}', "more than one of path, prefix, regex"),
        ('{"routes": [{"match": {"path": "a"}}]}', "allowed: a path that begins with /"),
        ('{"routes": [{"match": {"path": "/a?b"}}]}', "has no query"),
        ('{"routes": [{"match": {"regex": "("}}]}', "no regular expression: missing )"),
        ('{"routes": [{"match": {"methods": ["get"]}}]}', "a method in capitals"),
        ('{"routes": [{"match": {"headers": [{"name": "a"}]}}]}', "one of exact, prefix, regex, present"),
        ('{"routes": [{"match": {"headers": [{"name": "Connection", "present": true}]}}]}', "cannot name 'Connection'"),
        ('{"routes": [{"request_headers": {"set": {"Content-Length": "1"}}}]}', "cannot name 'Content-Length'"),
        ('{"routes": [{"request_headers": {"set": {"x-homeport-service": "b"}}}]}', "cannot name 'x-homeport-service'"),
        ('{"routes": [{"response_headers": {"add": {"a": "b\\r\\nc: d"}}}]}', "visible ASCII"),
        ('{"routes": [{"redirect": {"status": 200, "path": "/"}}]}', "allowed: 301, 302, 303, 307, 308"),
        ('{"routes": [{"redirect": {"path": "/"}, "to": [{}]}]}', "a redirect goes nowhere"),
        ('{"routes": [{"redirect": {"prefix": "/"}}]}', "where match.prefix is one"),
        ('{"routes": [{"rewrite": {"host": "a b"}}]}', "rewrite.host is 'a b'"),
        ('{"routes": [{"rewrite": {"regex": "a", "replacement": "\\\\1"}}]}', "names a group that the regex does not"),
        ('{"routes": [{"rate_limit": {}}]}', "missing required field `per_s`"),
        ('{"routes": [{"rate_limit": {"per_s": 0}}]}', "rate_limit.per_s is 0.0"),
        ('{"routes": [{"fault": {}}]}', "a delay_s or an abort_status"),
        ('{"routes": [{"fault": {"abort_status": 200}}]}', "allowed: 400 to 599"),
        ('{"routes": [{"mirror": {}}]}', "another service or a subset"),
        ('{"routes": [{"name": "a"}, {"name": "a"}]}', "two routes are called 'a'"),
        ('{"settings": {"per_try_s": -1}}', "per_try_s is -1.0"),
        ('{"settings": {"tls": {}}}', "give it to that machine's sidecar"),
        ('{"routes": [' + ",".join(["{}"] * 129) + "]}", "routes has 129 entries; allowed: 128"),
        (" " * (DOCUMENT_BYTES_MAX + 1), "allowed: 65536 bytes"),
    ],
)
def test_a_bad_document_is_refused_with_the_reason(document: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parsed(document.encode())
    assert reason in refused.value.message


@pytest.mark.parametrize("garbage", [b"\xff\xfe", b"{" * 5000, b'{"routes": null}', b'{"routes": [1]}', b"NaN"])
def test_garbage_is_refused_like_any_other(garbage: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parsed(garbage)


def test_a_document_is_the_same_in_toml_and_in_json() -> None:
    table = {"settings": {"per_try_s": 2.0}, "routes": [{"match": {"prefix": "/a"}, "to": [{"weight": 1.0}]}]}
    assert parsed(encoded(converted(table))) == converted(table)


def test_the_last_good_document_stays_until_a_good_one_comes() -> None:
    table = RouteTable()
    assert table.offer("Orders", GOOD, 5)
    router = table.router("orders")
    with pytest.raises(InvalidArgument):
        table.offer("orders", b"{", 6)
    ((service, entry),) = table
    assert (service, entry.revision, entry.refused_revision) == ("orders", 5, 6)
    assert "truncated" in entry.error
    assert table.router("orders") is router
    assert not table.offer("orders", GOOD, 7)
    assert (entry.error, entry.revision) == ("", 7)


def test_the_store_counts_for_more_than_the_configuration() -> None:
    table = RouteTable({"orders": parsed(b'{"routes": [{"name": "file"}]}')})
    assert table.offer("orders", GOOD, 5)
    assert _names(table) == ["all"]
    assert table.offer("orders", None, 6)
    assert _names(table) == ["file"]
    assert not table.offer("orders", None, 7)
    assert not table.offer("others", None, 7)


def test_a_changed_configuration_names_the_services_it_changes() -> None:
    table = RouteTable({"a": parsed(GOOD), "B": parsed(GOOD)})
    table.offer("c", GOOD, 5)
    assert table.configure({"b": parsed(GOOD), "c": parsed(b"{}"), "d": parsed(GOOD)}) == ["a", "d"]
    assert [service for service, _ in table] == ["b", "c", "d"]
    assert table.router("a") is None
    table.offer("c", None, 6)
    assert table.configure({}) == ["b", "c", "d"]


def test_what_is_withdrawn_is_forgotten() -> None:
    table = RouteTable()
    with pytest.raises(InvalidArgument):
        table.offer("orders", b"{", 5)
    assert table.router("orders") is None
    table.offer("orders", None, 6)
    assert list(table) == []


def _names(table: RouteTable) -> list[str]:
    router = table.router("orders")
    assert router is not None
    return [plan.route.name for plan in router.plans]


def test_a_weight_that_moves_gives_no_burst_away() -> None:
    text = '{{"routes": [{{"name": "a", "rate_limit": {{"per_s": 1}}, "to": [{{"weight": {}}}]}}]}}'
    before = Router(parsed(text.format(1).encode()))
    plan = before.find(b"GET", b"/", [])
    assert plan is not None
    assert plan.bucket is not None
    assert plan.bucket.take(0.0) == 0.0
    after = Router(parsed(text.format(2).encode()), before)
    assert after.plans[0].bucket is plan.bucket
    assert after.plans[0].requests == 1


def test_a_bucket_lets_through_its_rate_and_its_burst() -> None:
    rng = random.Random(SEED)
    bucket = TokenBucket(10.0, 5.0)
    now, through = 0.0, 0
    while now < 100.0:
        wait_s = bucket.take(now)
        through += not wait_s
        now += rng.uniform(0, 0.02) if not wait_s or rng.random() < 0.5 else wait_s
    print(f"seed {SEED}: {through}")
    assert 950 <= through <= 1005


def test_processes_share_a_rate() -> None:
    router = Router(parsed(b'{"routes": [{"rate_limit": {"per_s": 100, "burst": 8}}]}'), share=4)
    bucket = router.plans[0].bucket
    assert bucket is not None
    assert [bucket.take(0.0) for _ in range(3)] == [0.0, 0.0, 0.04]


def test_every_destination_gets_its_share() -> None:
    rng = random.Random(SEED)
    router = Router(parsed(b'{"routes": [{"to": [{"service": "a", "weight": 1}, {"service": "b", "weight": 9}]}]}'))
    seen = Counter(router.plans[0].place(rng).service for _ in range(10_000))
    print(f"seed {SEED}: {seen}")
    assert 900 <= seen["a"] <= 1100


def test_a_redirect_never_names_another_host_by_accident() -> None:
    router = Router(parsed(b'{"routes": [{"match": {"prefix": "/a/"}, "redirect": {"prefix": "/"}}]}'))
    plan = router.find(b"GET", b"/a//evil.example/", [])
    assert plan is not None
    assert plan.location(b"/a//evil.example/", b"orders", b"http") == b"/.//evil.example/"
