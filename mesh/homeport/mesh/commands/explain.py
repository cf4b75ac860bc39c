"""`homeport explain`: why each instance of a service is in or out of rotation, in words."""

from __future__ import annotations

import click

from homeport.client import Client, Instance, NotFound
from homeport.client.core.messages import Explain, Explained
from homeport.mesh.commands.did_you_mean import service_hint
from homeport.mesh.commands.options import json_option, registry_option, service_argument
from homeport.mesh.commands.output import print_json
from homeport.mesh.commands.running import ExitCode, ask


@click.command()
@service_argument
@click.argument("id_", metavar="[ID]", required=False, default="")
@registry_option
@json_option
def explain(name: str, id_: str, registry: str, as_json: bool) -> None:
    """Say why the instances of service NAME, or the one called ID, take traffic or do not.

    Exit code 0 if every one of them takes traffic, else 1.
    """

    async def question(client: Client) -> int:
        found = await client.resolve(name, passing=False)
        chosen = [each for each in sorted(found, key=lambda it: it.key) if id_ in ("", each.id)]
        answers: list[tuple[Instance, Explained]] = []
        for instance in chosen:
            try:
                answers.append((instance, await client.call(Explain(id=instance.id, node=instance.node))))
            except NotFound:  # it has gone meanwhile
                continue
        if as_json:
            print_json(
                [
                    {"id": each.id, "node": each.node, "available": said.available, "reasons": list(said.reasons)}
                    for each, said in answers
                ]
            )
        elif answers:
            for each, said in answers:
                click.secho(f"{each.id} on {each.node}", bold=True, nl=False)
                click.secho(f": {said.reasons[0]}", fg="green" if said.available else "red")
                for reason in said.reasons[1:]:
                    click.echo(f"  {reason}")
        else:
            what = f"no instance {id_!r} of {name!r}" if id_ and found else f"no instance of {name!r}"
            click.echo(f"homeport: there is {what}{'' if found else await service_hint(client, name)}", err=True)
        return ExitCode.DONE if answers and all(said.available for _, said in answers) else ExitCode.NO

    ask(registry, question)
