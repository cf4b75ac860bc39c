"""The proxy's pure decisions: routes, endpoints and their pools, retries, and where bodies end."""

from __future__ import annotations

import itertools
import random
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.sidecar.core import limits
from homeport.sidecar.core.cluster import Cluster
from homeport.sidecar.core.endpoint import Endpoint
from homeport.sidecar.core.retries import IDEMPOTENT, Failure, may_retry
from homeport.sidecar.core.routes import Hosts, Passed, Refusal, service_of, split_absolute
from homeport.sidecar.http1.bodies import ChunkedBody, LengthBody, body_of, encode_chunk
from homeport.sidecar.http1.framing import CHUNKED, head_end
from homeport.sidecar.http1.lines import Malformed
from tests.sidecar.endpoints import Pooled, instance

SEED = 20_260_101


def test_the_connection_used_last_is_lent_first_and_old_ones_are_given_up() -> None:
    endpoint: Endpoint[Pooled] = Endpoint(instance())
    old, new = Pooled(), Pooled()
    assert endpoint.give_back(old, 0.0)
    assert endpoint.give_back(new, 1.0)
    assert endpoint.expire(limits.POOL_IDLE_S + 0.5) == [old]
    assert endpoint.take(1.0 + limits.POOL_IDLE_S) is new
    assert endpoint.give_back(new, 10.0)
    assert endpoint.take(10.1 + limits.POOL_IDLE_S) is None


def test_the_pool_undercuts_what_the_instance_registered() -> None:
    assert Endpoint[Pooled](instance(idle_timeout_s=1.0)).idle_max_s < 1.0
    assert Endpoint[Pooled](instance(idle_timeout_s=300.0)).idle_max_s == limits.POOL_IDLE_S
    assert Endpoint[Pooled](instance()).idle_max_s == limits.POOL_IDLE_S


def test_an_update_closes_what_left_and_keeps_what_stayed() -> None:
    cluster: Cluster[Pooled] = Cluster("a")
    first, second = instance(1), instance(2)
    cluster.update({first.key: first, second.key: second})
    kept, lost = cluster.endpoints[first.key], cluster.endpoints[second.key]
    staying, leaving = Pooled(), Pooled()
    kept.give_back(staying, 0.0)
    lost.give_back(leaving, 0.0)
    change = cluster.update({first.key: instance(1, weight=7)})
    assert change.closing == [leaving]
    assert change.hopeless == [lost]
    assert cluster.endpoints[first.key] is kept
    assert kept.weight == 7
    assert kept.idle == [staying]
    assert not lost.give_back(Pooled(), 1.0)


@pytest.mark.parametrize(("fields", "hopeless"), [({"status": "critical"}, True), ({"state": "draining"}, False)])
def test_only_a_critical_endpoint_is_hopeless_to_wait_for(fields: dict[str, Any], hopeless: bool) -> None:
    cluster: Cluster[Pooled] = Cluster("a")
    cluster.update({instance().key: instance()})
    change = cluster.update({instance().key: instance(**fields)})
    assert bool(change.hopeless) == hopeless
    assert cluster.pick(random.Random(SEED)) is None


def test_an_instance_that_moved_is_another_endpoint() -> None:
    cluster: Cluster[Pooled] = Cluster("a")
    cluster.update({instance().key: instance()})
    before = cluster.endpoints[instance().key]
    change = cluster.update({instance().key: instance(port=9)})
    assert change.hopeless == [before]
    assert cluster.endpoints[instance().key].port == 9


def test_suspicion_ends() -> None:
    cluster: Cluster[Pooled] = Cluster("a")
    cluster.update({instance().key: instance()})
    (endpoint,) = cluster.endpoints.values()
    endpoint.failed(10.0)
    cluster.sweep(10.0 + limits.SUSPECT_S / 2, random.Random(SEED))
    assert endpoint.suspect
    cluster.sweep(10.0 + limits.SUSPECT_S, random.Random(SEED))
    assert not endpoint.suspect


def test_the_host_just_tried_is_never_next_but_an_earlier_one_may_be() -> None:
    cluster: Cluster[Pooled] = Cluster("a")
    cluster.update({instance(n).key: instance(n) for n in (1, 2)})
    one, two = cluster.endpoints.values()
    rng = random.Random(SEED)
    assert cluster.pick(rng, [one]) is two
    assert cluster.pick(rng, [one, two]) is one
    cluster.update({instance(1).key: instance(1)})
    assert cluster.pick(rng, [one]) is None


@pytest.mark.parametrize(
    ("failure", "method", "body_held", "retries"),
    list(itertools.product(Failure, [b"GET", b"PUT", b"POST", b"PATCH"], [True, False], [0, 1, 2, 3])),
)
def test_the_table_of_retries(failure: Failure, method: bytes, body_held: bool, retries: int) -> None:
    harmless = failure in (Failure.REFUSED, Failure.UNDELIVERED) or method in IDEMPOTENT
    expected = harmless and body_held and retries < 2
    assert may_retry(failure, method, retries=retries, retries_max=2, body_held=body_held) == expected


@pytest.mark.parametrize(
    ("host", "goes_to"),
    [
        (b"orders", "orders"),
        (b"ORDERS:80", "orders"),
        (b"orders.service.homeport", "orders"),
        (b"orders.service.homeport.:8080", "orders"),
        (b"a.b.service.homeport", "a.b"),
        (b"db.internal:5432", "db.internal"),
        (b"example.com", "example.com:80"),
        (b"example.com:8443", "example.com:8443"),
        (b"other.org:81", "other.org:81"),
    ],
)
def test_hosts_lead_where_they_say(host: bytes, goes_to: str) -> None:
    hosts = Hosts(static=["db.internal"], passthrough=["example.com", "other.org:81"])
    destination = hosts.destination(host)
    assert destination == goes_to
    assert isinstance(destination, Passed) == (":" in goes_to)


@pytest.mark.parametrize(
    "host", [b"1.2.3.4", b"[::1]", b"other.org", b"localhost", b"-a", b"", b"a:b:c", b".service.homeport"]
)
def test_other_hosts_lead_nowhere(host: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        Hosts(passthrough=["other.org:81"]).destination(host)
    assert (caught.value.status, caught.value.flag) == (404, "NR")


def test_absolute_targets_are_split() -> None:
    assert split_absolute(b"http://orders:80/x?y=http://z") == (b"orders:80", b"/x?y=http://z")
    assert split_absolute(b"HTTP://orders?x") == (b"orders", b"/?x")
    assert split_absolute(b"http://orders") == (b"orders", b"/")
    for wrong in (b"https://orders/", b"http:///x", b"http://me@orders/", b"httpx://a/"):
        with pytest.raises(Refusal):
            split_absolute(wrong)
    assert service_of("grüße".encode()) == "grüße"
    for wrong in (b"", b"\xff", b"a" * 513):
        with pytest.raises(Refusal):
            service_of(wrong)


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=6), cut=st.integers(1, 9), after=st.binary(max_size=9)
)
def test_a_chunked_body_is_the_same_however_it_is_cut(pieces: list[bytes], cut: int, after: bytes) -> None:
    wire = b"".join(encode_chunk(piece) for piece in pieces) + b"0\r\nX-A: b\r\nHost: c\r\n\r\n" + after
    body = ChunkedBody(400)
    got, at = b"", 0
    while not body.done:
        got += body.feed(wire[at : at + cut])
        at += cut
    assert got == b"".join(pieces)
    assert body.trailers == [(b"X-A", b"b")]
    assert after.startswith(body.rest)
    assert body.rest + wire[at:] == after


@given(st.binary(max_size=200), st.integers(1, 50))
def test_random_bytes_as_a_chunked_body_are_body_or_malformed(data: bytes, cut: int) -> None:
    body = ChunkedBody(400)
    got = b""
    with suppress(Malformed):
        for at in range(0, len(data), cut):
            if not body.done:
                got += body.feed(data[at : at + cut])
    assert len(got) <= len(data)


def test_a_body_of_known_length_ends_at_its_last_byte() -> None:
    body = LengthBody(5)
    assert (body.feed(b"abc"), body.done) == (b"abc", False)
    assert (body.feed(b"deGET"), body.done) == (b"de", True)
    assert body.rest == b"GET"
    assert isinstance(body_of(CHUNKED, 400), ChunkedBody)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\nHost: a\n", b"\x16\x03\x01", b"GET / HTTP/1.1\rHost: a", b"{}"])
def test_what_can_never_become_a_request_is_refused_before_its_head_is_complete(data: bytes) -> None:
    with pytest.raises(Malformed):
        head_end(data, limits.Limits(), request=True)
