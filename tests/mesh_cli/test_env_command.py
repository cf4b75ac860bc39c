"""`homeport env` over real processes: keys as variables, and what becomes of the command when they change."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest

from homeport.client import InvalidArgument
from homeport.mesh.commands.env import variables
from tests.mesh_cli.apps import DEADLINE_S

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.mesh_cli.conftest import Processes, Serving

QUICK = ("--min-wait", "0.05", "--max-wait", "1")
SAY = "import os, sys; print(os.environ.get('color'), flush=True); "
# Says its color, then every signal it gets; leaves with 7 at SIGTERM.
STAY = (
    SAY + "import signal, threading\n"
    "signal.signal(signal.SIGHUP, lambda *_: print('hup', flush=True))\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    "print('ready', flush=True)\n"
    "while True: signal.pause()"
)
unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def test_names_are_made_as_asked_and_none_is_lost_in_silence() -> None:
    values = {b"db/user": b"u", b"db-pass": b"\xff", b"dir/": b""}
    plain = variables(values, sanitize=False, upcase=False)
    assert {name: value.encode(errors="surrogateescape") for name, value in plain.items()} == {
        "db/user": b"u",
        "db-pass": b"\xff",
    }
    assert sorted(variables(values, sanitize=True, upcase=True)) == ["DB_PASS", "DB_USER"]
    with pytest.raises(InvalidArgument, match="two keys would be the variable A_B"):
        variables({b"a/b": b"1", b"a-b": b"2"}, sanitize=True, upcase=True)
    with pytest.raises(InvalidArgument, match="try --sanitize"):
        variables({b"a=b": b"1"}, sanitize=False, upcase=False)
    with pytest.raises(InvalidArgument, match="NUL"):
        variables({b"a": b"1\x00"}, sanitize=True, upcase=False)


def test_a_command_finds_the_keys_and_its_exit_code_is_ours(homeport: Processes, serving: Serving) -> None:
    homeport.quick("kv", "put", "app/color", "blue")
    homeport.quick("kv", "put", "apple", "no")
    result = homeport.run("env", "app/", "--", sys.executable, "-c", SAY + "sys.exit(5)")
    assert (result.returncode, result.stdout, result.stderr) == (5, "blue\n", "")
    assert homeport.run("env", "app/", "--", "no-such-program").returncode == 1
    assert homeport.run("env", "--restart", "--signal", "HUP", "app/", "--", "true").returncode == 2
    assert "there are: " in homeport.run("env", "--signal", "NOPE", "app/", "--", "true").stderr


@unix
def test_a_change_starts_it_anew_but_an_equal_one_does_not(homeport: Processes, serving: Serving) -> None:
    homeport.quick("kv", "put", "app/color", "blue")
    process = homeport.start("env", *QUICK, "--restart", "app/", "--", sys.executable, "-c", STAY)
    assert [homeport.line(process) for _ in range(2)] == ["blue\n", "ready\n"]
    homeport.quick("kv", "put", "app/color", "blue")
    homeport.quick("kv", "put", "app/color", "red")
    assert [homeport.line(process) for _ in range(2)] == ["red\n", "ready\n"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 7


@unix
def test_a_change_is_told_by_a_signal_where_that_is_asked_for(homeport: Processes, serving: Serving) -> None:
    process = homeport.start("env", *QUICK, "--signal", "hup", "app/", "--", sys.executable, "-c", STAY)
    assert [homeport.line(process) for _ in range(2)] == ["None\n", "ready\n"]
    homeport.quick("kv", "put", "app/color", "red")
    assert homeport.line(process) == "hup\n"
    process.send_signal(signal.SIGHUP)  # one for us is one for it
    assert homeport.line(process) == "hup\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 7
