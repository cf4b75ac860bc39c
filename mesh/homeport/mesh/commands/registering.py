"""`homeport register` and `homeport deregister`: instances by hand, for what does not register itself."""

from __future__ import annotations

import click
import msgspec

from homeport.client import Check, Client, Instance, InvalidArgument
from homeport.client.core.messages import Register
from homeport.mesh.commands.listings import plain_instance
from homeport.mesh.commands.options import json_option, registry_option
from homeport.mesh.commands.output import print_json
from homeport.mesh.commands.running import ExitCode, StopSignals, ask


def _pairs(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE.")
    return {key: value for key, _, value in (text.partition("=") for text in texts)}


@click.command()
@click.argument("name")
@click.option("--port", type=click.IntRange(0, 65_535), required=True, help="Where it listens.")
@click.option("--address", default="127.0.0.1", show_default=True, help="And on which address.")
@click.option("--id", "id_", default="", help="Its id, unique per node [default: NAME-HOST-PORT].")
@click.option("--node", default="", help="The node it is on [default: the registry's].")
@click.option("--tag", "tags", multiple=True, help="A tag; repeatable.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", callback=_pairs, help="Metadata; repeatable.")
@click.option("--zone", default="", help="The zone it is in.")
@click.option("--version", default="", help="The version it runs.")
@click.option("--weight", type=click.IntRange(0, 65_535), default=1, show_default=True, help="Its share of traffic.")
@click.option("--check-http", metavar="URL", default="", help="Let the registry ask this URL for 2xx.")
@click.option("--check-tcp", metavar="HOST:PORT", default="", help="Let the registry connect here.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Seconds between two.")
@click.option(
    "--ttl",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Stay and renew a lease of so many seconds; Ctrl-C deregisters. 0: register and return.",
)
@registry_option
@json_option
def register(
    name: str,
    port: int,
    address: str,
    id_: str,
    node: str,
    tags: tuple[str, ...],
    meta: dict[str, str],
    zone: str,
    version: str,
    weight: int,
    check_http: str,
    check_tcp: str,
    interval: float,
    ttl: float,
    registry: str,
    as_json: bool,
) -> None:
    """Register an instance of service NAME until it is deregistered, or with --ttl while this command runs."""
    checks = []
    if check_http:
        checks.append(Check(name="http", kind="http", url=check_http, interval_s=interval))
    if check_tcp:
        checks.append(Check(name="tcp", kind="tcp", address=check_tcp, interval_s=interval))

    async def question(client: Client) -> int:
        registration = client.register(
            name,
            port=port,
            id=id_,
            address=address,
            node=node,
            tags=tags,
            meta=meta,
            weight=weight,
            zone=zone,
            version=version,
            ttl_s=ttl,
            checks=checks,
        )
        if not ttl:
            await client.call(Register(instance=registration.instance))
            _say(await _registered(client, registration.instance), as_json)
            return ExitCode.DONE
        signals = StopSignals()
        async with registration:
            _say(await _registered(client, registration.instance), as_json)
            await signals.next()
        return ExitCode.DONE

    ask(registry, question)


async def _registered(client: Client, asked: Instance) -> Instance:
    found = await client.resolve(asked.service, passing=False)
    same = [each for each in found if each.id == asked.id and asked.node in ("", each.node)]
    return same[0] if same else asked


def _say(instance: Instance, as_json: bool) -> None:
    if as_json:
        print_json(plain_instance(instance))
    else:
        click.echo(f"{instance.id} on node {instance.node} is registered, {instance.status}")


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--node", default="", help="The node it is on [default: the registry's].")
@registry_option
@json_option
def deregister(id_: str, node: str, registry: str, as_json: bool) -> None:
    """Deregister the instance ID, whoever registered it; exit code 1 if there is none."""

    async def question(client: Client) -> int:
        if not id_:
            raise InvalidArgument("the id is empty", field="id")
        gone = await client.deregister(id_, node=node)
        if as_json:
            click.echo(msgspec.json.encode({"id": id_, "deregistered": gone}))
        else:
            click.echo(f"{id_} is deregistered" if gone else f"homeport: there is no instance {id_!r}", err=not gone)
        return ExitCode.DONE if gone else ExitCode.NO

    ask(registry, question)
