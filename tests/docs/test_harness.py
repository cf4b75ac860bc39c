"""The harness finds what is wrong with a page: without that, a page that passes says nothing."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from sybil.example import SybilFailure

from homeport.client import InvalidArgument
from tests.docs.harness.loaders import read_commands, read_json, read_toml
from tests.docs.harness.page import ROOT, Reader, follow
from tests.docs.harness.shell import Wrong, matches


def read(folder: Path, text: str) -> Reader:
    """Follow a page of this text."""
    page = folder / "page.md"
    page.write_text(text)
    with Reader(folder) as reader:
        follow(page, reader)
    return reader


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```python\nawait no_such_name\n```\n", "line 2, in <module>"),
        ("```python\n# late.py\nif:\n```\n", "invalid syntax"),
        ("```python\ndef test_arithmetic():\n    assert 1 == 2\n```\n", "assert 1 == 2"),
        ("<!-- goes on -->\n```python\nx = 1\n```\n", "it was to go on, and ended"),
        ("```sh\ntrue\nfalse\ntrue\n```\n", "did not get to its end"),
        ("```console\n$ echo one\ntwo\n```\n", "printed:\none"),
        ("```console\n$ false\n$ true\n```\n", "ended with 1"),
        ("```toml\n[serve]\nhtpp = 'off'\n```\n", "has no key 'htpp'"),
        ('```json\n{"routes": [{"name": "a", "to": [{"weight": -1}]}]}\n```\n', "to.weight"),
        ("```cobol\nSTOP RUN.\n```\n", "nobody knows how to run cobol"),
        ("```\nwhat am I?\n```\n", "without a language"),
        ("<!-- not run: it is far away from here -->\n```sh\nhomeport sreve\n```\n", "No such command"),
        ("<!-- terminal: a -->\n```console\n$ true\n```\n\n<!-- ended: a 3 -->\n", "ended with 0, the page says 3"),
    ],
)
def test_a_wrong_block_is_found_with_its_place(page: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises((Wrong, SybilFailure, SyntaxError, click.ClickException, ValueError, InvalidArgument)) as found:
        read(tmp_path, page)
    notes = "\n".join(getattr(found.value, "__notes__", []))
    assert complaint in f"{found.value}\n{notes}"
    assert "page.md, line" in f"{found.value}\n{notes}"


def test_names_and_the_loop_live_from_block_to_block(tmp_path: Path) -> None:
    reader = read(
        tmp_path,
        "```python\nimport asyncio\nlater = asyncio.get_running_loop().create_future()\n"
        "asyncio.get_running_loop().call_later(0.01, later.set_result, 7)\n```\n"
        "```python\nassert await later == 7\n```\n",
    )
    assert reader.ran == 2


def test_a_block_that_is_not_run_is_counted_with_its_reason(tmp_path: Path) -> None:
    reader = read(tmp_path, "<!-- not run: it needs root -->\n```sh\nfalse\n```\n")
    assert [(each.place, each.reason) for each in reader.skipped] == [(f"{tmp_path / 'page.md'}:2", "it needs root")]


def test_output_is_compared_loosely() -> None:
    assert matches("id   port\na-...  8080\n", "id  port\na-web1   8080   \n")
    assert matches("first\n...\nlast\n", "first\n1\n2\nlast\n")
    assert matches("first\n...\nlast\n", "first\nlast\n")
    assert not matches("first\nlast\n", "first\n1\nlast\n")
    assert not matches("port 8080\n", "port 8081\n")


def test_data_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    read_toml('[serve]\nhttp = "127.0.0.1:0"\n', tmp_path)
    with pytest.raises(click.ClickException):
        read_toml("[serve]\ndns-ttl = 5\n[nowhere]\n", tmp_path)
    read_json('{"routes": []}', tmp_path)
    with pytest.raises(ValueError, match="unknown field"):
        read_json('{"rotues": []}', tmp_path)


def test_commands_that_are_not_run_must_parse() -> None:
    read_commands("$ homeport serve --memory   # a comment\n$ apt-get install etcd\n")
    with pytest.raises(click.ClickException):
        read_commands("homeport serve --memroy\n")


def test_every_page_of_the_documentation_is_followed() -> None:
    from tests.docs.harness.page import pages

    assert {*(ROOT / "docs").glob("*.md")} < {*pages()}
