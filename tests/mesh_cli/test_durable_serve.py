"""`serve` on a data directory, `backup`, `restore` and `stats`, as real processes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homeport.client.core.messages import StatsReport
from homeport.mesh.commands.new_file import NewFile
from homeport.mesh.commands.options import default_data_dir
from homeport.mesh.commands.stats import table

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.mesh_cli.conftest import Processes, Serving

DEADLINE_S = 30


def test_what_was_acknowledged_is_there_after_a_kill(homeport: Processes, tmp_path: Path) -> None:
    homeport.variables["XDG_STATE_HOME"] = str(tmp_path)
    first = homeport.serve(where=())
    assert first.data == str(tmp_path / "homeport"), "the default, and the ready line says it"
    assert stat.S_IMODE((tmp_path / "homeport").stat().st_mode) == 0o700
    homeport.quick("kv", "put", "a", "kept")
    first.process.kill()
    first.process.wait(DEADLINE_S)
    homeport.serve(where=("--data-dir", str(tmp_path / "homeport")))
    assert homeport.quick("kv", "get", "a") == "kept"


def test_a_data_directory_that_cannot_be_used_is_exit_code_1_and_says_what_to_do(
    homeport: Processes, tmp_path: Path
) -> None:
    homeport.serve(where=("--data-dir", str(tmp_path / "used")))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "registry.db").write_bytes(b"not a database at all" * 1000)
    (tmp_path / "file").write_bytes(b"")
    for where, advice in (
        (tmp_path / "used", "stop that one, or choose another data directory"),
        (tmp_path / "foreign", "restore a backup, or move it away"),
        (tmp_path / "file" / "below", "choose another with --data-dir, or --memory"),
    ):
        refused = homeport.run("serve", "--http", "off", "--rpc", "off", "--data-dir", str(where))
        assert refused.returncode == 1
        assert advice in refused.stderr
        assert len(refused.stderr.splitlines()) == 1, "no traceback"


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("/var/state", "/var/state/homeport"),
        ("", "/h/.local/state/homeport"),
        ("a/b", "/h/.local/state/homeport"),
    ],
)
def test_the_default_directory_follows_the_xdg_rules(
    monkeypatch: pytest.MonkeyPatch, variable: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("XDG_STATE_HOME", variable)
    assert default_data_dir() == Path(expected)


def test_a_restore_puts_back_what_a_backup_holds_as_a_history_of_its_own(homeport: Processes, tmp_path: Path) -> None:
    serving = homeport.serve(where=("--data-dir", str(tmp_path / "data")))
    homeport.quick("kv", "put", "a", "before")
    file = tmp_path / "copy"
    made = homeport.run("backup", str(file), "--json")
    assert (made.returncode, made.stderr) == (0, ""), "no bar in a pipe"
    told = json.loads(made.stdout)
    assert (told["file"], told["bytes"], told["revision"]) == (str(file), file.stat().st_size, 2)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    homeport.quick("kv", "put", "a", "after")

    restored = homeport.run("restore", str(file), "--json")
    assert restored.returncode == 0, restored.stderr
    now = json.loads(restored.stdout)
    assert (now["revision"], now["keys"]) == (2, 1)
    assert now["from"] == {"store_id": told["store_id"], "revision": 2}
    assert now["store_id"] != told["store_id"]
    assert homeport.quick("kv", "get", "a") == "before"
    assert serving.process.poll() is None


def test_a_backup_replaces_a_file_only_by_force_and_leaves_nothing_else(homeport: Processes, tmp_path: Path) -> None:
    homeport.serve()
    file = tmp_path / "copy"
    file.write_text("precious")
    refused = homeport.run("backup", str(file))
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert file.read_text() == "precious"
    assert homeport.run("backup", str(file), "--force").stdout.startswith(f"{file}: store ")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_file_that_is_no_whole_backup_is_refused_before_anything_is_sent(homeport: Processes, tmp_path: Path) -> None:
    homeport.registry = f"unix:{tmp_path}/nobody"  # a registry that is asked would be exit code 3
    foreign = tmp_path / "foreign"
    foreign.write_text("not a database " * 1000)
    refused = homeport.run("restore", str(foreign))
    assert (refused.returncode, refused.stderr) == (1, f"homeport: {foreign} is not a backup of a registry\n")
    assert homeport.run("restore", str(foreign), "--registry", "a:1,b:1").returncode == 2


def test_a_terminal_is_asked_before_a_restore_and_shown_a_bar(homeport: Processes, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="only POSIX has terminals that a test can play")
    homeport.serve()
    file = tmp_path / "copy"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "homeport.mesh.cli"]

    def on_terminal(*args: str, typed: bytes, until: bytes) -> int:
        process = subprocess.Popen([*command, *args], stdin=theirs, stdout=theirs, stderr=theirs, env=homeport.env)
        os.write(ours, typed)
        seen = b""
        while until not in seen:  # the test's own timeout bounds the wait
            seen += os.read(ours, 65_536)
        return process.wait(DEADLINE_S)

    try:
        assert on_terminal("backup", str(file), typed=b"", until=b"fetching") == 0
        homeport.quick("kv", "put", "a", "after")
        assert on_terminal("restore", str(file), typed=b"n\n", until=b"Replace everything") == 1
        assert homeport.quick("kv", "get", "a") == "after"
        assert on_terminal("restore", str(file), typed=b"y\n", until=b"sending") == 0
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_file_that_was_not_finished_leaves_no_trace(tmp_path: Path) -> None:
    with NewFile(tmp_path / "new", force=False) as new:
        new.write(b"half")
        new.sync()
        assert new.part.read_bytes() == b"half"
    assert list(tmp_path.iterdir()) == []


def test_a_file_made_meanwhile_by_somebody_else_stays(tmp_path: Path) -> None:
    with NewFile(tmp_path / "new", force=False) as new:
        new.write(b"ours")
        (tmp_path / "new").write_bytes(b"theirs")
        with pytest.raises(FileExistsError):
            new.finish()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("new", b"theirs")]


def test_stats_tell_programs_every_number_and_people_their_units(homeport: Processes, serving: Serving) -> None:
    homeport.quick("kv", "put", "a", "x" * 2048)
    numbers = json.loads(homeport.quick("stats", "--json"))
    assert (numbers["revision"], numbers["keys"], numbers["value_bytes"], numbers["read_only"]) == (2, 1, 2048, 0)
    assert {"leases", "watchers", "journal_waiting", "journal_commit_us", "loop_late_max_us"} <= numbers.keys()
    shown = homeport.run("stats").stdout
    assert "their values" in shown
    assert "2.0 KiB" in shown


def test_a_registry_that_cannot_write_says_so_first() -> None:
    rows = dict(table(StatsReport("s", {"read_only": 1, "journal_commit_us": 1_234_567, "leases": 12_345}), None))
    assert rows["writable"] == "no: /readyz says why"
    assert rows["last write to disk, fsync included"] == "1,234.6 ms"
    assert rows["leases"] == "12,345"
