"""`homeport completion`: the script that makes a shell complete commands, options and what the registry knows."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_HOMEPORT_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL."""
    found = get_completion_class(shell)
    assert found is not None, "click completes these three"
    root = click.get_current_context().find_root().command
    click.echo(found(root, {}, "homeport", VARIABLE).source())
