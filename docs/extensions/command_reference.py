"""`{command-reference}`: every command with its options and examples, from the table that `homeport --help` is from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from homeport.mesh.cli import COMMANDS, cli


class CommandReference(SphinxDirective):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(_commands()), allow_section_headings=True)


def _commands() -> Iterator[str]:
    context = click.Context(cli, info_name="homeport", auto_envvar_prefix="HOMEPORT")
    for name, entry in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        yield from _command(command, f"homeport {name}", click.Context(command, context, name))
        yield from ("Examples:", "", "```sh", *entry.examples, "```", "")
        if isinstance(command, click.Group):
            for inner in command.commands.values():
                yield from _command(inner, f"homeport {name} {inner.name}", click.Context(inner, context, inner.name))


def _command(command: click.Command, title: str, context: click.Context) -> Iterator[str]:
    yield from (f"## {title}", "", (command.help or "").replace("\b", ""), "")
    yield from ("```text", " ".join([title, *command.collect_usage_pieces(context)]), "```", "")
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    records = [record for each in options if (record := each.get_help_record(context))]
    if records:
        yield from ("| option | what |", "|---|---|")
        yield from (f"| `{_cell(names)}` | {_cell(text)} |" for names, text in records)
        yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("<", r"\<").replace("*", r"\*")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-reference", CommandReference)
    return {"parallel_read_safe": True}
