"""`homeport render` over real processes: files that follow the registry, and commands that run when they change."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mesh_cli.apps import DEADLINE_S, eventually
from tests.ports import free_port

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.mesh_cli.conftest import Processes, Serving

QUICK = ("--min-wait", "0.05", "--max-wait", "1")
UPSTREAMS = """\
{%- for one in service("web") %}
server {{ one.address }}:{{ one.port }};  # {{ one.id }}{{ " canary" if "canary" in one.tags }}
{%- endfor %}
limit {{ key("limits/web", "10") }};
"""
unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def put(serving: Serving, path: str, body: object = None) -> None:
    request = urllib.request.Request(f"http://{serving.http}{path}", json.dumps(body).encode(), method="PUT")
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        assert answer.status == 200


def register(serving: Serving, id_: str, port: int, *tags: str) -> None:
    put(serving, "/v1/agent/service/register", {"Name": "web", "ID": id_, "Port": port, "Tags": tags})


def written(folder: Path, text: str, name: str = "a.tmpl") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_once_writes_the_file_runs_the_command_and_leaves(
    homeport: Processes, serving: Serving, tmp_path: Path
) -> None:
    register(serving, "web2", 81, "canary")
    register(serving, "web1", 80)
    put(serving, "/v1/kv/limits/web", 20)
    template, out, ran = written(tmp_path, UPSTREAMS), tmp_path / "out.conf", tmp_path / "ran"
    once = ("render", "--once", f"{template}:{out}:echo ran >> {ran}")
    result = homeport.run(*once)
    assert (result.returncode, result.stderr) == (0, "")
    assert out.read_text() == ("\nserver 127.0.0.1:80;  # web1\nserver 127.0.0.1:81;  # web2 canary\nlimit 20;\n")
    assert homeport.run(*once).returncode == 0
    assert ran.read_text() == "ran\n"  # the second time nothing had changed


def test_a_file_follows_the_registry_and_its_command_runs_for_changes_alone(
    homeport: Processes, serving: Serving, tmp_path: Path
) -> None:
    template, out, ran = written(tmp_path, UPSTREAMS), tmp_path / "out.conf", tmp_path / "ran"
    out.write_text("old")
    out.chmod(0o640)
    render = homeport.start("render", *QUICK, f"{template}:{out}:echo ran >> {ran}")
    eventually(lambda: out.read_text() == "\nlimit 10;\n", "rendered with nothing there")
    register(serving, "web1", 80)
    eventually(lambda: "web1" in out.read_text(), "it follows a registration")
    put(serving, "/v1/kv/limits/web", 30)
    eventually(lambda: "limit 30" in out.read_text(), "it follows a key")
    put(serving, "/v1/kv/limits/other", 1)  # nothing to it
    put(serving, "/v1/agent/service/deregister/web1")
    eventually(lambda: "web1" not in out.read_text(), "it follows a deregistration")
    assert out.stat().st_mode & 0o777 == 0o640
    eventually(lambda: ran.read_text() == "ran\n" * 4, "once for each change")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tmpl", "out.conf", "ran"]  # no part left behind
    render.send_signal(signal.SIGTERM)
    assert render.wait(DEADLINE_S) == 0


@unix
def test_a_sighup_reads_the_template_anew_and_a_broken_one_is_not_taken(
    homeport: Processes, serving: Serving, tmp_path: Path
) -> None:
    template, out = written(tmp_path, "one {{ key('a', '-') }}"), tmp_path / "out"
    render = homeport.start("render", *QUICK, f"{template}:{out}")
    eventually(lambda: out.exists() and out.read_text() == "one -", "rendered")
    template.write_text("{% broken")
    render.send_signal(signal.SIGHUP)
    assert "stay as they were" in homeport.line(render)
    put(serving, "/v1/kv/a", 1)
    eventually(lambda: out.read_text() == "one 1", "the old one goes on")
    template.write_text("two {{ key('a') }}")
    render.send_signal(signal.SIGHUP)
    eventually(lambda: out.read_text() == "two 1", "the new one is taken")


def test_a_registry_that_lost_everything_takes_no_instance_out_of_a_file(homeport: Processes, tmp_path: Path) -> None:
    http, rpc = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    first = homeport.serve(http, rpc)
    register(first, "web1", 80)
    put(first, "/v1/kv/a", 1)
    text = "{{ key('a') }} {% for one in service('web') %}{{ one.id }}{% endfor %}"
    template, out = written(tmp_path, text), tmp_path / "out"
    homeport.start("render", *QUICK, f"{template}:{out}")
    eventually(lambda: out.exists() and out.read_text() == "1 web1", "rendered")
    first.process.kill()
    first.process.wait(DEADLINE_S)
    second = homeport.serve(http, rpc)
    put(second, "/v1/kv/a", 2)  # until then the template cannot be rendered
    eventually(lambda: out.read_text() != "1 web1", "rendered again")
    assert out.read_text() == "2 web1"


def test_many_changes_at_once_run_the_command_once_for_all_its_files(
    homeport: Processes, serving: Serving, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    first = written(tmp_path, "{{ tree('app/') | length }}", "first")
    second = written(tmp_path, "{{ keys('app/') | dictsort }}", "second")
    command = f"echo ran >> {ran}"
    homeport.start("render", "--min-wait", "0.5", f"{first}:{tmp_path}/1:{command}", f"{second}:{tmp_path}/2:{command}")
    eventually(ran.exists, "rendered")
    for number in range(20):
        put(serving, f"/v1/kv/app/{'sub/' * (number % 2)}{number}", number)
    eventually(lambda: (tmp_path / "1").read_text() == "20", "all of it is there")
    eventually(lambda: (tmp_path / "2").read_text().count("(") == 10, "those of one level too")
    eventually(lambda: len(ran.read_text().splitlines()) >= 2, "the command ran")
    assert len(ran.read_text().splitlines()) <= 21  # and not for each file


def test_a_file_that_cannot_be_written_is_told_of_and_holds_up_no_other(
    homeport: Processes, serving: Serving, tmp_path: Path
) -> None:
    template = written(tmp_path, "x")
    result = homeport.run("render", "--once", f"{template}:{tmp_path}/none/1", f"{template}:{tmp_path}/2")
    assert (result.returncode, "there is no directory" in result.stderr) == (1, True)
    assert (tmp_path / "2").read_text() == "x"
    template.write_bytes(b"\xff")
    result = homeport.run("render", "--once", f"{template}:{tmp_path}/2")
    assert (result.returncode, "no UTF-8 text" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("template", "code", "said"),
    [
        ("{{ key('none') }}", 1, "there is no key 'none'; write it, or give it a default"),
        ("{{ nobody }}", 1, "'nobody' is undefined"),
        ("{{ ''.__class__.__mro__ }}", 1, "SecurityError"),
        ("{{ env('NOBODY_SET_THIS') }}", 1, "there is no NOBODY_SET_THIS in the environment"),
        ("a\n{% for %}", 2, "line 2"),
    ],
)
def test_a_template_that_cannot_be_rendered_leaves_the_file_and_says_why(
    homeport: Processes, serving: Serving, tmp_path: Path, template: str, code: int, said: str
) -> None:
    out = tmp_path / "out"
    out.write_text("as it was")
    result = homeport.run("render", "--once", f"{written(tmp_path, template)}:{out}")
    assert result.returncode == code
    assert said in result.stderr
    assert out.read_text() == "as it was"


def test_a_command_that_fails_or_never_ends_is_told_of(homeport: Processes, serving: Serving, tmp_path: Path) -> None:
    template = written(tmp_path, "x")
    failed = homeport.run("render", "--once", f"{template}:{tmp_path}/1:exit 3")
    assert (failed.returncode, "exit code 3" in failed.stderr) == (1, True)
    endless = homeport.run("render", "--once", "--command-timeout", "0.3", f"{template}:{tmp_path}/2:sleep 1000")
    assert (endless.returncode, "did not end" in endless.stderr) == (1, True)
    assert homeport.run("render", "no-colon").returncode == 2


def test_bytes_that_are_no_text_come_through(homeport: Processes, serving: Serving, tmp_path: Path) -> None:
    request = urllib.request.Request(f"http://{serving.http}/v1/kv/raw", b"\xff\x00\xfe", method="PUT")
    urllib.request.urlopen(request, timeout=DEADLINE_S).close()
    template, out = written(tmp_path, "{{ key('raw') }}"), tmp_path / "out"
    assert homeport.run("render", "--once", f"{template}:{out}").returncode == 0
    assert out.read_bytes() == b"\xff\x00\xfe"
    assert os.stat(out).st_mode & 0o777 == 0o644
