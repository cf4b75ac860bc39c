"""Data that pages show, read by what reads it in earnest: an unknown key or a bad value is an error."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from homeport.mesh.cli import cli
from homeport.sidecar import Routing

# What commands demand beside what a file can say.
_DEMANDED: Final[dict[str, list[str]]] = {"run": ["--name", "any", "--port", "1", "any"]}


def read_toml(source: str, folder: Path) -> None:
    """A configuration file, as `homeport --config` takes it; every command that it speaks of is prepared, not run.

    Raises:
        click.ClickException: a key is none, or a value cannot be.
    """
    file = folder / "of-a-page.toml"
    file.write_text(source)
    said = tomllib.loads(source)
    context = cli.make_context("homeport", ["--config", str(file)], auto_envvar_prefix="HOMEPORT")
    beside = {"service": "sidecar", "tcp": "sidecar", "http": "sidecar", "routing": "sidecar"}
    for name in {beside.get(key, key) for key, value in said.items() if not isinstance(value, str)}:
        found, command, rest = cli.resolve_command(context, [name, *_DEMANDED.get(name, [])])
        assert command is not None
        if isinstance(command, click.Group):
            group = click.Context(command, context, found, default_map=(context.default_map or {}).get(name))
            for inner in said[name]:
                command.commands[inner].make_context(inner, [], parent=group)
        else:
            command.make_context(found, rest, parent=context)


def read_json(source: str, _folder: Path) -> None:
    """A document of routes: the only JSON that Homeport reads from files."""
    msgspec.convert(json.loads(source), Routing)


def read_commands(source: str) -> None:
    """Lines of a shell that nobody runs: each `homeport ...` among them must be one that the command line takes.

    Raises:
        click.ClickException: there is no such command or option, or a value cannot be.
    """
    for line in source.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] == ["homeport"]:
            context = click.Context(cli, info_name="homeport", auto_envvar_prefix="HOMEPORT")
            name, command, rest = cli.resolve_command(context, words[1:])
            assert command is not None
            command.make_context(name, rest, parent=context)


LOADERS: Final[dict[str, Callable[[str, Path], Any]]] = {"toml": read_toml, "json": read_json}
