"""`kv export`, `import` and `watch`: JSON lines that hold any bytes, over real processes where those matter."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.client import InvalidArgument, KeyValue
from homeport.mesh.commands import json_lines
from homeport.mesh.commands.json_lines import Line, plain, read_lines

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.mesh_cli.conftest import Processes, Serving

DEADLINE_S = 30


async def parsed(data: bytes) -> list[Line]:
    """What is read from a pipe that holds `data`."""
    ours, theirs = os.pipe()

    def fill() -> None:
        with suppress(BrokenPipeError), os.fdopen(theirs, "wb") as pipe:
            pipe.write(data)

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        async with aclosing(read_lines(ours)) as lines:
            return [line async for line in lines]
    finally:
        await asyncio.to_thread(filling.join)


@given(st.lists(st.tuples(st.binary(min_size=1), st.binary())))
async def test_any_bytes_come_back_as_they_were(pairs: list[tuple[bytes, bytes]]) -> None:
    entries = [KeyValue(key, value, 1, 2, 3, 4) for key, value in pairs]
    lines = await parsed(msgspec.json.Encoder().encode_lines([plain(entry) for entry in entries]))
    assert [(line.key, line.value) for line in lines] == pairs


async def test_a_line_that_comes_in_many_pieces_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_READ_BYTES", 3)
    lines = await parsed(b'{"key":"a","value":"1"}\n\n {"value":"2", "key":"b", "more":[]}')
    assert lines == [Line(1, 24, b"a", b"1"), Line(3, 62, b"b", b"2")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b'{"key":"a"}', "either 'value' or 'value_base64'"),
        (b'{"value":"a"}', "either 'key' or 'key_base64'"),
        (b'{"key":"a","key_base64":"YQ==","value":""}', "either 'key' or 'key_base64'"),
        (b'{"key":"a","value":1}', "Expected `str | null`"),
        (b'{"key":"a","value_base64":"?"}', "base64"),
        (b'{"key":"","value":""}', "the key is empty"),
        (b'{"key":"\xff","value":""}', "utf-8"),
    ],
)
async def test_a_line_that_is_wrong_is_named_with_the_reason(line: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^line 2: ") as error:
        await parsed(b'{"key":"a","value":"1"}\n' + line + b'\n{"key":"b","value":"1"}\n')
    assert reason in error.value.message
    assert error.value.details["line"] == 2


async def test_a_line_without_end_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_LINE_BYTES_MAX", 1000)
    with pytest.raises(InvalidArgument, match=r"^line 2: longer than 1000 bytes"):
        await parsed(b"\n" + b" " * 60_000)


def test_an_import_brings_back_what_an_export_took_out(homeport: Processes, serving: Serving, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    pairs = {f"k/{number}".encode(): os.urandom(300_000) for number in range(6)}  # more than one page of an answer
    pairs |= {b"k/\xff\x00": b"", b"k/text": "zw\N{LATIN SMALL LETTER O WITH DIAERESIS}lf\n".encode(), b"other": b"x"}
    entries = [plain(KeyValue(key, value, 0, 0, 0, 0)) for key, value in pairs.items()]
    file.write_bytes(msgspec.json.Encoder().encode_lines(entries))
    imported = homeport.run("kv", "import", str(file))
    assert (imported.returncode, imported.stdout, imported.stderr) == (0, "9 keys written\n", "")

    out = tmp_path / "out"
    assert homeport.run("kv", "export", "k/", "--output", str(out)).returncode == 0
    found = [json.loads(line) for line in out.read_bytes().splitlines()]
    keep = ("key", "key_base64", "value", "value_base64")
    taken = [{name: entry[name] for name in keep if name in entry} for entry in found]
    sent = [json.loads(line) for line in file.read_bytes().splitlines() if b'"other"' not in line]
    expected = [{name: entry[name] for name in keep if name in entry} for entry in sent]
    assert sorted(taken, key=repr) == sorted(expected, key=repr)
    assert all(entry["mod_revision"] > 1 for entry in found)
    assert homeport.run("kv", "export", "k/text").stdout.encode() in out.read_bytes()


def test_lines_of_one_key_apply_in_order_and_existing_keys_can_be_kept(homeport: Processes, serving: Serving) -> None:
    lines = "".join(f'{{"key":"a","value":"{number}"}}\n' for number in range(500))
    assert homeport.run("kv", "import", "-", stdin=lines).stdout == "500 keys written\n"
    assert homeport.quick("kv", "get", "a") == "499"
    lines = '{"key":"a","value":"new"}\n{"key":"b","value":"new"}\n'
    kept = homeport.run("kv", "import", "-", "--keep-existing", "--json", stdin=lines)
    assert json.loads(kept.stdout) == {"written": 1, "kept": 1}
    assert homeport.quick("kv", "get", "a") == "499"


def test_nothing_is_written_from_a_wrong_line_on_and_what_was_is_said(homeport: Processes, serving: Serving) -> None:
    good = '{"key":"a","value":""}\n'
    too_long = '{"key":"%s","value":""}\n' % ("k" * 5000)
    after = '{"key":"z","value":""}\n'
    refused = homeport.run("kv", "import", "-", stdin=good + too_long + after)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        "homeport: line 2: the key has 5000 bytes; allowed: 4096; nothing from there on; 1 key written\n"
    )
    assert [json.loads(line)["key"] for line in homeport.quick("kv", "export").splitlines()] == ["a"]


def test_a_line_that_the_registry_refuses_stops_the_import(homeport: Processes, serving: Serving) -> None:
    only_the_registry_knows = '{"key":"%s","value":""}\n' % ("k" * 4096)  # too long with the prefix it is stored under
    refused = homeport.run("kv", "import", "-", stdin='{"key":"a","value":""}\n' + only_the_registry_knows)
    assert refused.returncode == 2
    assert refused.stderr.startswith("homeport: line 2: the key has 4098 bytes")
    assert refused.stderr.endswith("; 1 key written\n")


def test_an_import_from_a_silent_pipe_can_be_interrupted(homeport: Processes, serving: Serving) -> None:
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as pipe:
        command = [sys.executable, "-m", "homeport.mesh.cli", "kv", "import", "-"]
        importing = subprocess.Popen(command, stdin=ours, stderr=subprocess.PIPE, env=homeport.env)
        os.close(ours)
        assert importing.stderr is not None
        pipe.write('{"key":"a","value":"1"}\n')
        pipe.flush()
        give_up = time.monotonic() + DEADLINE_S
        while homeport.quick("kv", "list", "--json") == "[]\n":
            assert time.monotonic() < give_up, "what came is written while more may come"
        importing.send_signal(signal.SIGINT)
        assert importing.wait(DEADLINE_S) == 1
        assert importing.stderr.read().strip() == b"Aborted!"
        importing.stderr.close()


def test_a_watch_prints_every_change_until_it_is_stopped(homeport: Processes, serving: Serving) -> None:
    for command in (("put", "a/1", "x"), ("put", "b", "x"), ("delete", "a/1")):
        homeport.quick("kv", *command)
    watching = homeport.start("kv", "watch", "a/", "--prefix", "--from", "2")
    assert homeport.line(watching) == "2  put  a/1  x\n"
    assert homeport.line(watching) == "4  delete  a/1\n"
    homeport.quick("kv", "put", "a/2", "now")
    assert homeport.line(watching) == "5  put  a/2  now\n"
    watching.send_signal(signal.SIGINT)
    assert watching.wait(DEADLINE_S) == 0


def test_a_watch_is_json_lines_for_programs(homeport: Processes, serving: Serving) -> None:
    homeport.quick("kv", "put", "a", "x")
    homeport.quick("kv", "delete", "a")
    watching = homeport.start("kv", "watch", "a", "--from", "2", "--json")
    assert json.loads(homeport.line(watching)) == {"revision": 2, "key": "a", "value": "x"}
    assert json.loads(homeport.line(watching)) == {"revision": 3, "key": "a", "deleted": True}
