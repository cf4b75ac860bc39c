"""The table is whole, and the page that documents it says the same."""

from __future__ import annotations

from pathlib import Path

from homeport.registry.fronts.consul.calls import Endpoint
from homeport.registry.fronts.consul.table import TABLE, Routes, documentation

PAGE = Path(__file__).parents[3] / "docs" / "consul.md"


def test_the_page_holds_the_table_as_it_is() -> None:
    table = documentation()
    assert table in PAGE.read_text(), f"docs/consul.md must hold this, line by line:\n{table}"


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
