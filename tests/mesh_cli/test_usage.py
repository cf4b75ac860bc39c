"""What the command line says before it does anything: help, mistakes, configuration."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from homeport.mesh.cli import COMMANDS, cli
from homeport.mesh.commands.run import environment


def invoke(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, list(args), prog_name="homeport", auto_envvar_prefix="HOMEPORT", env=env)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_in_the_table_exists_and_has_help(name: str) -> None:
    module, _, attribute = COMMANDS[name].target.partition(":")
    assert isinstance(getattr(importlib.import_module(module), attribute), click.Command)
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: homeport {name}")


def test_the_help_lists_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for name, entry in COMMANDS.items():
        assert f"  {name} " in result.output
        assert entry.help in result.output


def test_the_help_loads_nothing_heavy() -> None:
    heavy = {"aiohttp", "rich", "asyncio", "uvloop", "msgspec", "homeport.client"}
    code = (
        "import sys; from homeport.mesh.cli import cli; cli(['--help'], standalone_mode=False); "
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["instence"], "Did you mean 'instances'?"),
        (["xyzzy"], "There are: serve, sidecar"),
        (["serve", "--htpp", "127.0.0.1:1"], "--htt"),
        (["serve", "--http", "nonsense"], "'nonsense' is not HOST:PORT"),
        (["serve", "--rpc", "127.0.0.1:70000"], "is not HOST:PORT, with port 0 to 65535"),
        (["kv", "copy", "k"], "There are: get, put, delete, list, watch, export, import."),
        (["routes", "copy"], "There are: check, get, put, delete."),
        (["serve", "--data-dir", "somewhere", "--memory"], "exclude each other"),
        (["instances"], "Missing argument 'NAME'"),
        (["kv", "gte", "k"], "Did you mean 'get'?"),
        (["services", "--jsno"], "Did you mean '--json'?"),
        (["register", "db"], "Missing option '--port'"),
        (["register", "db", "--port", "1", "--meta", "x"], "'x' is not KEY=VALUE"),
        (["completion", "tcsh"], "'bash', 'zsh', 'fish'"),
        (["kv", "put", "only-a-key"], "Missing argument 'VALUE'"),
        (["kv", "put", "k", "v", "--cas", "-1"], "-1 is not in the range"),
        (["kv", "delete", "k", "--prefix", "--cas", "3"], "--cas goes with one key"),
        (["run", "--name", "orders", "--", "true"], "Missing option '--port'"),
        (["run", "--name", "orders", "--port", "80"], "Missing argument 'COMMAND...'"),
        (["run", "--name", "a", "--port", "80", "--check-path", "x", "--", "true"], "must start with /"),
        (["run", "--name", "a", "--port", "80", "--inbound", "0.0.0.0:1", "--", "true"], "say with --address"),
        (["sidecar", "--static", "db"], "is not NAME=HOST:PORT"),
        (["sidecar", "--inbound-tls-cert", __file__], "needs both --inbound-tls-cert and --inbound-tls-key"),
        (["sidecar", "--timeout", "coffee=3"], "where NAME is one of connect, head, body,"),
        (["sidecar", "--timeout", "first-byte=soon"], "'soon' is not a number"),
        (["sidecar", "--timeout", "stream=0"], "stream_s must be more than 0"),
        (["run", "--name", "a", "--port", "80", "--limit", "headers=1.5", "--", "true"], "'1.5' is not a number"),
        (["demo", "--seconds", "1000"], "is not in the range"),
    ],
)
def test_a_mistake_is_a_usage_error_that_says_what_is_allowed(args: list[str], complaint: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert complaint in result.output


def test_a_registry_that_is_not_there_is_exit_code_3(tmp_path: Path) -> None:
    result = invoke("services", "--registry", f"unix:{tmp_path}/nobody")
    assert result.exit_code == 3, result.output


def test_options_come_from_the_command_line_then_the_environment_then_the_file(tmp_path: Path) -> None:
    config = tmp_path / "homeport.toml"
    config.write_text('registry = "from-file"\n[serve]\nhttp = "from-file"\n')
    file = ["--config", str(config)]
    assert "'from-file'" in invoke(*file, "serve").output
    variables = {"HOMEPORT_SERVE_HTTP": "from-environment"}
    assert "'from-environment'" in invoke(*file, "serve", env=variables).output
    assert "'from-line'" in invoke(*file, "serve", "--http", "from-line", env=variables).output


@pytest.mark.parametrize("command", [["services"], ["kv", "list"]])
def test_the_registry_of_the_file_holds_for_every_command(tmp_path: Path, command: list[str]) -> None:
    config = tmp_path / "homeport.toml"
    config.write_text(f'registry = "unix:{tmp_path}/nobody-here"\n')
    result = invoke("--config", str(config), *command)
    assert result.exit_code == 3
    assert "nobody-here" in result.output


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[serv]\n", "'serv' is neither a command nor"),
        ("[serve]\nhtpp = 'off'\n", "[serve] has no key 'htpp'; it may have: access-log, data-dir, dns, dns-domain,"),
        ("[kv.get]\nnope = 1\n", "[kv.get] has no key 'nope'"),
        ("[[service]]\nname = 'db'\n", "a [[service]] has"),
        ("[[tcp]]\nservice = 'sidecar'\n", "a [[tcp]] has exactly listen"),
        ("[[tcp]]\nlisten = 'sidecar'\nservice = 'db'\n", "'sidecar' is not HOST:PORT"),
        ("[[routing]]\nsettings = 'sidecar'\n", "a [[routing]] has a service"),
        ("[[routing]]\nservice = 'sidecar'\nroute = []\n", "sidecar: Object contains unknown field `route`"),
        ("[sidecar.timeouts]\nfirst-bite = 3\n", "where NAME is one of connect, head, body, first-byte,"),
        ("[sidecar.limits]\nline-bytes = 10\n", "line_bytes must be at least 256"),
        ("x = \n", "Invalid value"),
    ],
)
def test_a_mistake_in_the_file_is_a_usage_error(tmp_path: Path, content: str, complaint: str) -> None:
    config = tmp_path / "homeport.toml"
    config.write_text(content)
    command = ["kv", "get", "x"] if "kv" in content else ["sidecar"] if "sidecar" in content else ["serve"]
    result = invoke("--config", str(config), *command)
    assert result.exit_code == 2, result.output
    assert complaint in result.output


def test_the_app_is_told_its_port_and_the_way_to_the_others() -> None:
    at = {"outbound": "127.0.0.1:15001", "inbound": "127.0.0.1:15006"}
    env = environment({"PATH": "/bin", "NO_PROXY": "db"}, 8080, at, {"id": "a-1"})
    assert env["PATH"] == "/bin"
    assert (env["PORT"], env["HOMEPORT_ID"]) == ("8080", "a-1")
    assert env["HTTP_PROXY"] == env["http_proxy"] == "http://127.0.0.1:15001"
    assert env["NO_PROXY"] == env["no_proxy"] == "db,localhost,127.0.0.1,::1"
    assert (env["HOMEPORT_OUTBOUND"], env["HOMEPORT_INBOUND"]) == ("127.0.0.1:15001", "127.0.0.1:15006")


def test_without_an_outbound_the_app_has_no_proxy() -> None:
    env = environment({}, 8080, {}, {})
    assert env == {"PORT": "8080"}
