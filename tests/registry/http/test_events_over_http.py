"""Events: fired, listed in order, waited for by name, and bounded."""

from __future__ import annotations

import asyncio
import base64
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from homeport.registry import Registry
from homeport.registry.core import keys
from homeport.registry.fronts.consul.events import EVENT_BYTES_MAX, EVENTS_MAX

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.http.conftest import Http


async def listed(http: Http, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await http("GET", f"/v1/event/list{query}")).json
    return found


async def test_an_event_is_listed_as_it_was_fired(http: Http) -> None:
    fired = await http("PUT", "/v1/event/fire/deploy?node=^web&service=web&tag=v2", b"now \xff")
    assert fired.status == 200
    one = fired.json
    assert str(uuid.UUID(one["ID"])) == one["ID"]
    assert base64.b64decode(one["Payload"]) == b"now \xff"
    assert (one["Name"], one["NodeFilter"], one["ServiceFilter"], one["TagFilter"]) == ("deploy", "^web", "web", "v2")
    assert (one["Version"], one["LTime"]) == (1, 1)
    assert await listed(http) == [one]


async def test_an_event_without_a_payload_has_null_there(http: Http) -> None:
    assert (await http("PUT", "/v1/event/fire/tick")).json["Payload"] is None


async def test_events_are_listed_in_the_order_in_which_they_were_fired_each_with_an_id_of_its_own(http: Http) -> None:
    for name in ("b", "a", "c", "a"):
        await http("PUT", f"/v1/event/fire/{name}")
    found = await listed(http)
    assert [one["Name"] for one in found] == ["b", "a", "c", "a"]
    assert [one["LTime"] for one in found] == [1, 2, 3, 4]
    assert len({one["ID"] for one in found}) == 4
    assert [one["LTime"] for one in await listed(http, "?name=a")] == [2, 4]
    assert await listed(http, "?name=never") == []


async def test_a_name_that_begins_like_another_is_not_that_one(http: Http) -> None:
    for name in ("deploy", "deploy-all", "deploy%2Fall"):
        await http("PUT", f"/v1/event/fire/{name}")
    assert [one["Name"] for one in await listed(http, "?name=deploy")] == ["deploy"]
    assert [one["Name"] for one in await listed(http, "?name=deploy/all")] == ["deploy/all"]


async def test_a_list_for_somebody_leaves_out_what_is_meant_for_others(http: Http) -> None:
    await http("PUT", "/v1/event/fire/all")
    await http("PUT", "/v1/event/fire/part?node=web")
    await http("PUT", "/v1/event/fire/start?node=^web")
    await http("PUT", "/v1/event/fire/end?node=web$")
    await http("PUT", "/v1/event/fire/whole?node=^web$")
    await http("PUT", "/v1/event/fire/tagged?service=api&tag=v1")
    meant = {
        "?node=web": {"all", "part", "start", "end", "whole", "tagged"},
        "?node=web-1": {"all", "part", "start", "tagged"},
        "?node=old-web": {"all", "part", "end", "tagged"},
        "?node=db": {"all", "tagged"},
        "?node=db&service=cache": {"all"},
        "?node=db&service=api&tag=v2": {"all"},
        "?node=db&service=api&tag=v1": {"all", "tagged"},
    }
    for query, names in meant.items():
        assert {one["Name"] for one in await listed(http, query)} == names, query


@pytest.mark.parametrize("path", ["x?node=(a", "x?service=(%3F%3Dx)", "x?tag=v1", "", "x" * (EVENT_BYTES_MAX + 1)])
async def test_what_cannot_be_done_is_400_and_leaves_nothing(http: Http, path: str) -> None:
    assert (await http("PUT", f"/v1/event/fire/{path}")).status == 400
    assert await listed(http) == []


async def test_a_payload_has_a_longest_length(http: Http) -> None:
    assert (await http("PUT", "/v1/event/fire/x", b"p" * EVENT_BYTES_MAX)).status == 200
    assert (await http("PUT", "/v1/event/fire/x", b"p" * (EVENT_BYTES_MAX + 1))).status == 413
    assert len(await listed(http)) == 1


async def test_only_the_newest_are_kept_and_no_index_goes_back(http: Http, registry: Registry) -> None:
    await http("PUT", "/v1/event/fire/first")
    before = (await http("GET", "/v1/event/list?name=first")).index
    for number in range(EVENTS_MAX + 3):
        await http("PUT", f"/v1/event/fire/n{number}")
    found = await listed(http)
    assert [one["Name"] for one in found] == [f"n{number}" for number in range(3, EVENTS_MAX + 3)]
    assert registry.store.mvcc.count(keys.EVENTS, keys.prefix_end(keys.EVENTS)) == EVENTS_MAX
    after = await http("GET", "/v1/event/list?name=first")
    assert after.json == []
    assert after.index > before, "what was dropped from the list changed it"
    assert (await http("GET", f"/v1/event/list?name=first&index={before}")).json == []


async def test_events_fired_at_the_same_time_are_all_kept_once(http: Http) -> None:
    fired = await asyncio.gather(*(http("PUT", f"/v1/event/fire/n{number}") for number in range(40)))
    times = {reply.json["LTime"] for reply in fired}
    assert times == set(range(1, 41))
    assert len(await listed(http)) == 40


async def test_who_waits_for_a_name_hears_of_it_and_of_no_other(http: Http) -> None:
    await http("PUT", "/v1/event/fire/deploy")
    index = (await http("GET", "/v1/event/list?name=deploy")).index
    waiting = await http.blocked(f"/v1/event/list?name=deploy&index={index}")
    anyone = await http.blocked(f"/v1/event/list?index={index}")
    await http("PUT", "/v1/event/fire/else")
    assert [one["Name"] for one in (await anyone).json] == ["deploy", "else"]
    assert not waiting.done()
    assert http.front.numbers.blocked == 1
    await http("PUT", "/v1/event/fire/deploy", b"2")
    woken = await waiting
    assert [one["LTime"] for one in woken.json] == [1, 3]
    assert woken.index > index


async def test_a_filter_is_a_regular_expression_that_holds_nobody_up(http: Http) -> None:
    assert (await http("PUT", "/v1/event/fire/deploy?service=^w[ab]%2Bb$")).status == 200
    assert (await http("PUT", "/v1/event/fire/deploy?service=^(a%2B)%2B$")).status == 200
    assert len((await http("GET", "/v1/event/list?service=waab")).json) == 1
    assert (await http("GET", f"/v1/event/list?service={'a' * 4000}b")).json == []
