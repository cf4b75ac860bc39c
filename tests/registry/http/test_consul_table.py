"""The table is whole, and the page that documents it says the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from homeport.registry.fronts.consul.calls import Endpoint
from homeport.registry.fronts.consul.documentation import HEADERS, documentation
from homeport.registry.fronts.consul.routes import Routes
from homeport.registry.fronts.consul.table import TABLE

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.registry.http.conftest import Http

PAGE = Path(__file__).parents[3] / "docs" / "consul.md"


def test_the_page_holds_the_table_as_it_is() -> None:
    table = documentation()
    assert table in PAGE.read_text(), f"docs/consul.md must hold this, line by line:\n{table}"


async def test_every_header_that_an_answer_has_is_on_the_page(http: Http) -> None:
    sent = {header.name for header in HEADERS if header.sent and header.support != "refused"}
    usual = {"Content-Type", "Content-Length", "Date", "Connection"}
    seen: set[str] = set()
    await http("PUT", "/v1/agent/service/register", {"Name": "web"})
    for method, path in (
        ("GET", "/v1/health/service/web?stale&hash="),
        ("GET", "/v1/kv/none"),
        ("GET", "/v1/agent/service/web"),
        ("DELETE", "/v1/agent/self"),
        ("OPTIONS", "/v1/kv/a"),
        ("GET", "/v1/acl/tokens"),
        ("GET", "/nothing"),
    ):
        seen |= (await http(method, path)).headers.keys() - usual
    assert seen <= sent
    assert sent - seen == {"Retry-After"}, "which tests of crowds see"


def test_every_row_is_answered_or_says_why_not() -> None:
    for row in TABLE:
        assert (row.view is None) == (row.support == "refused"), row.name
        assert row.support == "supported" or row.note, row.name
        assert row.access != "read" or row.method in ("GET", "*"), row.name
        assert (row.body_bytes_max > 0) == (row.takes is not None), row.name
        assert row.view is None or row.summary, row.name
        names = [parameter.name for parameter in row.parameters]
        assert len(names) == len(set(names)), row.name
        for parameter in row.parameters:
            assert parameter.support == "supported" or parameter.note, (row.name, parameter.name)
        if row.resource is not None:
            assert {"index", "wait"} <= set(names), row.name


def test_the_longest_beginning_of_a_path_decides() -> None:
    routes = Routes(
        tuple(
            Endpoint(method="GET", path=path, summary="", note=path)
            for path in ("/v1/a", "/v1/a/{}", "/v1/a/b/{x}", "/v1/a/b/c", "/v1/a/b/c/d/e/{y}")
        )
    )
    expected = {
        "/v1/a": ("/v1/a", ""),
        "/v1/a/": ("/v1/a/{}", ""),
        "/v1/a/x": ("/v1/a/{}", "x"),
        "/v1/a//b/": ("/v1/a/{}", "/b/"),
        "/v1/a/b": ("/v1/a/{}", "b"),
        "/v1/a/b/": ("/v1/a/b/{x}", ""),
        "/v1/a/b/c": ("/v1/a/b/c", ""),
        "/v1/a/b/c/": ("/v1/a/b/{x}", "c/"),
        "/v1/a/b/c/d/e/f/g/h/i": ("/v1/a/b/c/d/e/{y}", "f/g/h/i"),
        "/v1/a/b/%2F/..": ("/v1/a/b/{x}", "%2F/.."),
    }
    for path, (row, variable) in expected.items():
        match = routes.match(path)
        assert match is not None, path
        assert (match.rows["GET"].path, match.variable) == (row, variable), path
    for path in ("", "/", "/v1", "/v1/", "/v1/b", "v1/a"):
        assert routes.match(path) is None, path
