"""`homeport services` and `homeport instances`: what the registry knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import click
import msgspec

from homeport.client import Client, Instance
from homeport.mesh.commands.did_you_mean import service_hint
from homeport.mesh.commands.options import json_option, registry_option, service_argument
from homeport.mesh.commands.output import print_json, print_table
from homeport.mesh.commands.running import ExitCode, ask


@click.command()
@registry_option
@json_option
def services(registry: str, as_json: bool) -> None:
    """List every service with the tags its instances carry."""

    async def question(client: Client) -> int:
        found = await client.services()
        if as_json:
            print_json({name: list(tags) for name, tags in sorted(found.items())})
        else:
            print_table(["service", "tags"], [[name, ", ".join(tags)] for name, tags in sorted(found.items())])
        return ExitCode.DONE

    ask(registry, question)


@click.command()
@service_argument
@click.option("--passing", is_flag=True, help="Only those that may take traffic now.")
@registry_option
@json_option
def instances(name: str, passing: bool, registry: str, as_json: bool) -> None:
    """List the instances of service NAME, whatever their status; exit code 1 if there are none."""

    async def question(client: Client) -> int:
        found = await client.resolve(name, passing=passing)
        found = tuple(sorted(found, key=lambda instance: instance.key))
        if as_json:
            print_json([plain_instance(instance) for instance in found])
        elif found:
            print_table(INSTANCE_COLUMNS, instance_rows(found))
        else:
            known = name in await client.services()
            hint = "" if known else await service_hint(client, name)
            click.echo(f"homeport: {name!r} has no {'passing ' if passing else ''}instances{hint}", err=True)
        return ExitCode.DONE if found else ExitCode.NO

    ask(registry, question)


INSTANCE_COLUMNS: Final = ("id", "node", "address", "status", "state", "version", "tags")


def instance_rows(instances: Iterable[Instance]) -> list[list[str]]:
    """Instances as rows of a table with `INSTANCE_COLUMNS`."""
    return [
        [
            instance.id,
            instance.node,
            f"{instance.address}:{instance.port}",
            instance.status,
            instance.state,
            instance.version,
            ", ".join(instance.tags),
        ]
        for instance in instances
    ]


def plain_instance(instance: Instance) -> dict[str, object]:
    """Every field, defaults included, so that programs need not know them."""
    return {field: getattr(instance, field) for field in instance.__struct_fields__ if field != "extra"} | {
        "checks": [msgspec.structs.asdict(check) for check in instance.checks]
    }
