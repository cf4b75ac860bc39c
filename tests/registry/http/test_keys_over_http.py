"""Keys as Consul's clients read and write them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from homeport.registry import Registry

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.http.conftest import Http


async def test_a_key_is_shown_as_consul_shows_it(http: Http, registry: Registry) -> None:
    assert (await http("PUT", "/v1/kv/web/port?flags=18446744073709551615", b"80\x00")).json is True
    found = await http("GET", "/v1/kv/web/port")
    revision = registry.store.mvcc.revision
    assert found.json == [
        {
            "LockIndex": 0,
            "Key": "web/port",
            "Flags": 2**64 - 1,
            "Value": base64.b64encode(b"80\x00").decode(),
            "CreateIndex": revision,
            "ModifyIndex": revision,
        }
    ]
    assert found.index == revision
    assert found.headers["X-Consul-KnownLeader"] == "true"
    assert found.headers["X-Consul-LastContact"] == "0"
    assert found.headers["X-Consul-Effective-Consistency"] == "leader"
    assert found.headers["Content-Type"] == "application/json"


async def test_an_empty_value_is_null(http: Http) -> None:
    await http("PUT", "/v1/kv/empty")
    assert (await http("GET", "/v1/kv/empty")).json[0]["Value"] is None
    raw = await http("GET", "/v1/kv/empty?raw")
    assert (raw.status, raw.body) == (200, b"")


async def test_raw_is_the_bytes_and_never_a_page(http: Http) -> None:
    value = bytes(range(256))
    await http("PUT", "/v1/kv/bytes", value)
    raw = await http("GET", "/v1/kv/bytes?raw")
    assert raw.body == value
    assert raw.headers["X-Content-Type-Options"] == "nosniff"
    assert raw.headers["Content-Security-Policy"] == "sandbox"
    assert raw.index > 0


async def test_a_value_that_says_it_is_compressed_is_kept_as_sent(http: Http) -> None:
    await http("PUT", "/v1/kv/zipped", b"\x1f\x8b not really", Content_Encoding="gzip")
    assert (await http("GET", "/v1/kv/zipped?raw")).body == b"\x1f\x8b not really"


async def test_a_missing_key_is_404_with_an_index(http: Http) -> None:
    for path in ("/v1/kv/none", "/v1/kv/none?raw", "/v1/kv/none?recurse", "/v1/kv/none?keys", "/v1/kv/?recurse"):
        missing = await http("GET", path)
        assert (missing.status, missing.body) == (404, b""), path
        assert missing.index >= 1, path


async def test_keys_at_an_empty_root_are_an_empty_list(http: Http) -> None:
    root = await http("GET", "/v1/kv/?keys")
    assert (root.status, root.json) == (200, [])
    assert root.index >= 1


async def test_recurse_lists_exactly_what_starts_with_the_prefix_in_order(http: Http) -> None:
    for key in ("a", "a/c", "a/b", "ab", "b"):
        await http("PUT", f"/v1/kv/{key}", key.encode())
    assert [entry["Key"] for entry in (await http("GET", "/v1/kv/a?recurse")).json] == ["a", "a/b", "a/c", "ab"]
    assert [entry["Key"] for entry in (await http("GET", "/v1/kv/a/?recurse")).json] == ["a/b", "a/c"]
    assert [entry["Key"] for entry in (await http("GET", "/v1/kv/?recurse")).json] == ["a", "a/b", "a/c", "ab", "b"]


@pytest.mark.parametrize("spelling", ["separator", "seperator"])
async def test_keys_are_cut_after_the_first_separator_and_told_once(http: Http, spelling: str) -> None:
    for key in ("d/a/1", "d/a/2", "d/b", "d/c/x/y", "d//z"):
        await http("PUT", f"/v1/kv/{key}", b"")
    assert (await http("GET", f"/v1/kv/d/?keys&{spelling}=/")).json == ["d//", "d/a/", "d/b", "d/c/"]
    assert (await http("GET", f"/v1/kv/?keys&{spelling}=/")).json == ["d/"]
    assert (await http("GET", "/v1/kv/d/?keys")).json == ["d//z", "d/a/1", "d/a/2", "d/b", "d/c/x/y"]


async def test_an_identical_put_changes_nothing(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/kv/same?flags=3", b"v")
    revision = registry.store.mvcc.revision
    assert (await http("PUT", "/v1/kv/same?flags=3", b"v")).json is True
    assert registry.store.mvcc.revision == revision
    assert (await http("PUT", "/v1/kv/same?flags=4", b"v")).json is True
    assert registry.store.mvcc.revision == revision + 1
    entry = (await http("GET", "/v1/kv/same")).json[0]
    assert (entry["Flags"], entry["ModifyIndex"]) == (4, revision + 1)
    assert (await http("PUT", "/v1/kv/same", b"v")).json is True  # without flags they are 0
    assert (await http("GET", "/v1/kv/same")).json[0]["Flags"] == 0
    assert not list(registry.store.mvcc.keys(b"m/", b"m0")), "flags that are the default take no key"


async def test_cas_0_only_creates(http: Http) -> None:
    assert (await http("PUT", "/v1/kv/once?cas=0", b"1")).json is True
    assert (await http("PUT", "/v1/kv/once?cas=0", b"2")).json is False
    assert (await http("GET", "/v1/kv/once?raw")).body == b"1"


async def test_cas_writes_only_at_the_index_given(http: Http) -> None:
    await http("PUT", "/v1/kv/k", b"1")
    index = (await http("GET", "/v1/kv/k")).json[0]["ModifyIndex"]
    assert (await http("PUT", f"/v1/kv/k?cas={index + 1}", b"2")).json is False
    assert (await http("PUT", f"/v1/kv/k?cas={index}", b"2")).json is True
    assert (await http("PUT", f"/v1/kv/k?cas={index}", b"3")).json is False
    assert (await http("PUT", f"/v1/kv/gone?cas={index}", b"3")).json is False
    assert (await http("GET", "/v1/kv/k?raw")).body == b"2"


async def test_a_deletion_with_cas_is_true_for_what_is_absent_and_false_for_what_has_moved(http: Http) -> None:
    assert (await http("DELETE", "/v1/kv/k?cas=7")).json is True
    assert (await http("DELETE", "/v1/kv/k?cas=0")).json is True
    await http("PUT", "/v1/kv/k", b"1")
    index = (await http("GET", "/v1/kv/k")).json[0]["ModifyIndex"]
    assert (await http("DELETE", "/v1/kv/k?cas=0")).json is False
    assert (await http("DELETE", f"/v1/kv/k?cas={index - 1}")).json is False
    assert (await http("GET", "/v1/kv/k")).status == 200
    assert (await http("DELETE", f"/v1/kv/k?cas={index}")).json is True
    assert (await http("GET", "/v1/kv/k")).status == 404


async def test_a_deletion_takes_the_flags_with_it(http: Http, registry: Registry) -> None:
    for key in ("t/1", "t/2", "u"):
        await http("PUT", f"/v1/kv/{key}?flags=5", b"x")
    assert (await http("DELETE", "/v1/kv/t/?recurse")).json is True
    assert (await http("DELETE", "/v1/kv/u")).json is True
    assert list(registry.store.mvcc.keys(b"k/", b"n")) == []


async def test_flags_of_a_key_that_others_deleted_are_not_its_successors(http: Http, registry: Registry) -> None:
    async with registry.client() as client:
        await http("PUT", "/v1/kv/k?flags=5", b"x")
        await client.kv.delete(b"k")
        await client.kv.put(b"k", b"y")
    assert (await http("GET", "/v1/kv/k")).json[0]["Flags"] == 0


async def test_flags_of_a_key_that_ended_with_another_lease_are_not_its_successors(
    http: Http, registry: Registry
) -> None:
    await http("PUT", "/v1/kv/k?flags=5", b"x")
    lease = registry.store.new_lease()
    await registry.store.lease_grant(60, lease)
    async with registry.client() as client:
        await client.kv.put(b"k", b"y", lease=lease)  # moves the key alone onto the lease
        assert (await http("GET", "/v1/kv/k")).json[0]["Flags"] == 5
        await registry.store.lease_revoke(lease)
        await client.kv.put(b"k", b"z")
    assert (await http("GET", "/v1/kv/k")).json[0]["Flags"] == 0
    await http("PUT", "/v1/kv/k?flags=6", b"z")
    assert (await http("GET", "/v1/kv/k")).json[0]["Flags"] == 6


async def test_a_put_leaves_the_key_on_its_lease(http: Http, registry: Registry) -> None:
    lease = registry.store.new_lease()
    await registry.store.lease_grant(60, lease)
    async with registry.client() as client:
        await client.kv.put(b"held", b"1", lease=lease)
    await http("PUT", "/v1/kv/held?flags=9", b"2")
    assert registry.store.mvcc.keys_on(lease) == (b"k/held", b"m/held")
    await registry.store.lease_revoke(lease)
    assert list(registry.store.mvcc.keys(b"k/", b"n")) == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/kv/"),
        ("PUT", "/v1/kv/"),
        ("DELETE", "/v1/kv/"),
        ("PUT", "/v1/kv/k?cas=x"),
        ("PUT", "/v1/kv/k?cas=-1"),
        ("PUT", "/v1/kv/k?flags=18446744073709551616"),
        ("PUT", "/v1/kv/k?cas=0&acquire=7c0f"),
        ("DELETE", "/v1/kv/k?recurse&cas=1"),
        ("GET", "/v1/kv/k?stale&consistent"),
        ("GET", "/v1/kv/k?index=-1"),
        ("GET", "/v1/kv/k?index=five"),
        ("GET", "/v1/kv/k?index=1&wait=10"),
        ("GET", "/v1/kv/k?recurse=maybe"),
    ],
)
async def test_what_cannot_be_meant_is_400_and_says_why(http: Http, registry: Registry, method: str, path: str) -> None:
    await http("PUT", "/v1/kv/k", b"1")
    revision = registry.store.mvcc.revision
    reply = await http(method, path)
    assert reply.status == 400, reply
    assert len(reply.body) > 10
    assert registry.store.mvcc.revision == revision


KEYS = [
    ("a//b", b"a//b"),
    ("a/../b", b"a/../b"),
    ("./a", b"./a"),
    ("/", b"/"),
    ("%00", b"\x00"),
    ("a%2Fb", b"a/b"),
    ("a%20b+c", b"a b+c"),
    ("%C3%A9", "é".encode()),
    ("%ff%fe", b"\xff\xfe"),
    ("%25", b"%"),
    ("a%3Fb%23c", b"a?b#c"),
    ("a;b=c&d", b"a;b=c&d"),
    ("%2e%2e/%2E", b"../."),
    ("trailing/", b"trailing/"),
]


@pytest.mark.parametrize(("path", "key"), KEYS, ids=[path for path, _ in KEYS])
async def test_a_key_is_its_path_byte_for_byte(http: Http, registry: Registry, path: str, key: bytes) -> None:
    assert (await http("PUT", f"/v1/kv/{path}", b"here")).json is True
    assert [kv.key for kv in map(registry.store.mvcc.get, registry.store.mvcc.keys(b"k/", b"k0")) if kv] == [
        b"k/" + key
    ]
    found = await http("GET", f"/v1/kv/{path}?raw")
    assert (found.status, found.body) == (200, b"here")
    assert (await http("GET", f"/v1/kv/{path}")).json[0]["Key"] == key.decode(errors="replace")
    assert (await http("DELETE", f"/v1/kv/{path}")).json is True
    assert (await http("GET", f"/v1/kv/{path}")).status == 404


async def test_the_longest_key_fits_even_when_every_byte_is_encoded(http: Http) -> None:
    path = "%20" * (4096 - len("k/"))
    assert (await http("PUT", f"/v1/kv/{path}?flags=1&cas=0", b"x")).status == 200
    assert (await http("GET", f"/v1/kv/{path}?raw")).body == b"x"
    assert (await http("PUT", f"/v1/kv/{path}%20", b"x")).status == 413
