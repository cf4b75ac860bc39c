"""Every option of every command is a TOML key and a HOMEPORT_ variable; every example in the help is a real call."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner

from homeport.mesh.cli import COMMANDS, cli

Path_ = tuple[str, ...]


def commands() -> Iterator[tuple[Path_, click.Command]]:
    """Every command, those in groups too, with the words that name it."""
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from (((name, inner), each) for inner, each in command.commands.items())
        else:
            yield (name,), command


ALL = [
    pytest.param(path, command, option, id=" ".join([*path, option.opts[0]]))
    for path, command in commands()
    for option in command.params
    if isinstance(option, click.Option)
]


def sample(option: click.Option, folder: Path) -> Any:
    """A value that the option's type takes."""
    kind = option.type
    if option.is_flag:
        return not option.default
    if isinstance(kind, click.Choice):
        return next(iter(kind.choices))
    if isinstance(kind, click.IntRange | click.FloatRange):
        return (kind.min or 0) + 1
    if isinstance(kind, click.Path):
        (folder / "file").touch()
        return str(folder if kind.file_okay is False else folder / "file")
    if kind in (click.INT, click.FLOAT):
        return 3
    samples = {
        "static": "db=127.0.0.1:1",
        "limit": "headers=10",
        "timeout": "connect=3",
        "meta": "a=b",
        "signal": "HUP",
        "routes": f"db={folder / 'routes.toml'}",
        "service": f"db={folder / 'routes.toml'}",
    }
    (folder / "routes.toml").touch()
    default = "127.0.0.1:1=db" if option.metavar == "HOST:PORT=NAME" else "127.0.0.1:0"
    return samples.get(written(option), default)


def written(option: click.Option) -> str:
    """The option as people write it, without its dashes before."""
    return max(option.opts, key=len).lstrip("-")


def source_of(
    path: Path_, command: click.Command, option: click.Option, monkeypatch: pytest.MonkeyPatch, **run: Any
) -> ParameterSource | None:
    """Where a run finds the option's value; it stops before the command does anything."""
    found: list[ParameterSource | None] = []
    assert option.name is not None

    def callback(**_values: Any) -> None:
        assert option.name is not None
        found.append(click.get_current_context().get_parameter_source(option.name))

    monkeypatch.setattr(command, "callback", callback)
    for other in command.params:
        if (isinstance(other, click.Option) and other is not option) or isinstance(other, click.Argument):
            monkeypatch.setattr(other, "required", False)
    config = run.pop("config", None)
    args = [*(["--config", config] if config else []), *path]
    result = CliRunner().invoke(cli, args, prog_name="homeport", auto_envvar_prefix="HOMEPORT", **run)
    assert result.exit_code == 0, result.output
    return found[0]


@pytest.mark.parametrize(("path", "command", "option"), ALL)
def test_every_option_is_a_variable(
    path: Path_, command: click.Command, option: click.Option, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = {"registry": "HOMEPORT_REGISTRY", "state-dir": "HOMEPORT_STATE_DIR"}
    variable = shared.get(written(option)) or "_".join(["HOMEPORT", *path, written(option)]).upper().replace("-", "_")
    value = sample(option, tmp_path)
    env = {variable: ("1" if value else "0") if isinstance(value, bool) else str(value)}
    assert source_of(path, command, option, monkeypatch, env=env) is ParameterSource.ENVIRONMENT


@pytest.mark.parametrize(("path", "command", "option"), ALL)
def test_every_option_is_a_key_of_the_file(
    path: Path_, command: click.Command, option: click.Option, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    value: Any = sample(option, tmp_path)
    if option.multiple:
        value = [value]
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    config = tmp_path / "homeport.toml"
    config.write_text(f"[{'.'.join(path)}]\n{written(option)} = {shown}\n")
    source = source_of(path, command, option, monkeypatch, config=str(config), env={"HOMEPORT_REGISTRY": ""})
    assert source is ParameterSource.DEFAULT_MAP


def test_the_level_of_the_log_is_one_too(tmp_path: Path) -> None:
    config = tmp_path / "homeport.toml"
    config.write_text('log-level = "nonsense"\n')
    result = CliRunner().invoke(cli, ["--config", str(config), "services"], prog_name="homeport")
    assert result.exit_code == 2
    assert "'nonsense' is not one of" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_a_call_that_parses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("monday.homeport", "haproxy.cfg.j2", "motd.j2", "orders.toml"):
        (tmp_path / file).touch()
    assert COMMANDS[name].examples
    for example in COMMANDS[name].examples:
        words = shlex.split(example.removeprefix('eval "$(').removesuffix(')"').partition(" > ")[0])
        assert words[0] == "homeport"
        context = click.Context(cli, info_name="homeport")
        command: click.Command = cli
        rest = words[1:]
        while isinstance(command, click.Group):
            _, inner, rest = command.resolve_command(context, rest)
            assert inner is not None
            command, context = inner, click.Context(inner, parent=context, info_name=words[1])
        command.make_context(name, rest, parent=context.parent)
