"""Options and value types that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click

from homeport.mesh.cli import did_you_mean
from homeport.mesh.token import token

F = TypeVar("F", bound=Callable[..., Any])

COMPLETION_S: Final = 0.5  # how long a shell's completion may wait for a registry
OFF: Final = "off"
REGISTRY_DEFAULT: Final = "127.0.0.1:8300"


class Actions(click.Group):
    """A group of commands that says which there are when it is asked for another."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}.{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


def address(text: str) -> str:
    """An option's type: HOST:PORT, with port 0 to 65535."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise click.BadParameter(f"{text!r} is not HOST:PORT, with port 0 to 65535.")
    return text


def listener(text: str) -> str:
    """An option's type: HOST:PORT, or `off`."""
    return text if text == OFF else address(text)


def rpc_listeners(text: str) -> str:
    """An option's type: HOST:PORT or unix:/PATH, several with commas between them, or `off`."""
    for each in text.split(","):
        if not each.startswith("unix:/"):
            listener(each)
    return text


def listeners(text: str) -> str:
    """An option's type: HOST:PORT, several with commas between them, or `off`."""
    for each in text.split(","):
        listener(each)
    return text


def static_service(text: str) -> str:
    """An option's type: NAME=HOST:PORT[,HOST:PORT...], a service that registers nowhere."""
    name, equals, endpoints = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text!r} is not NAME=HOST:PORT,...")
    for each in endpoints.split(","):
        address(each)
    return text


def local_port(text: str) -> str:
    """An option's type: HOST:PORT=NAME, a local port that stands for a service."""
    at, equals, name = text.rpartition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text!r} is not HOST:PORT=NAME.")
    address(at)
    return text


def local_ports(option: str, texts: Iterable[str]) -> dict[str, str]:
    """What those options say: addresses by name."""
    ports: dict[str, str] = {}
    for at, _, name in (text.rpartition("=") for text in texts):
        if name in ports:
            raise click.UsageError(f"{option}: {name!r} stands at {ports[name]} already; a service has one port.")
        ports[name] = at
    return ports


def static_services(texts: Iterable[str]) -> dict[str, list[str]]:
    """What those options say: addresses by name."""
    parts = (text.partition("=") for text in texts)
    return {name: endpoints.split(",") for name, _, endpoints in parts}


def default_data_dir() -> Path:
    """Where this user's registry keeps its data, and sidecars theirs; a relative variable is ignored (XDG)."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "homeport"


def bounds_option(option: str, attribute: str, kind: Callable[..., Any], unit: str, says: str) -> Callable[[F], F]:
    """A repeatable option NAME=VALUE that becomes one frozen `kind`, whose fields may end in `_s`."""
    known = {field.name.removesuffix("_s").replace("_", "-"): field for field in fields(cast("Any", kind))}

    def collect(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> Any:
        values: dict[str, float] = {}
        for text in texts:
            name, _, value = text.partition("=")
            if name not in known:
                raise click.BadParameter(f"{text!r}: NAME=VALUE, where NAME is one of {', '.join(known)}.")
            field = known[name]
            try:
                values[field.name] = int(value) if field.type == "int" else float(value)
            except ValueError:
                raise click.BadParameter(f"{text!r}: {value!r} is not a number.") from None
        try:
            return kind(**values)
        except ValueError as error:
            raise click.BadParameter(f"{error}.") from None

    defaults = ", ".join(
        f"{name}={field.default if field.default is not None else 'off'}" for name, field in known.items()
    )
    return click.option(
        option,
        attribute,
        metavar=f"NAME={unit}",
        multiple=True,
        callback=collect,
        help=f"{says}; repeatable. The names and what holds without: {defaults}.",
    )


def registry_option(command: F) -> F:
    """`--registry HOST:PORT[,HOST:PORT]`, also HOMEPORT_REGISTRY."""
    return click.option(
        "--registry",
        metavar="HOST:PORT[,...]",
        envvar="HOMEPORT_REGISTRY",
        default=REGISTRY_DEFAULT,
        show_default=True,
        help="Where the registry listens; also unix:/path.",
    )(command)


def service_argument(command: F) -> F:
    """NAME of a service; shells complete it from the registry."""
    return click.argument("name", shell_complete=_services)(command)


def _services(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The services whose names begin so; none if the registry does not answer at once, as somebody is typing."""
    import asyncio

    from homeport.client import Client, HomeportError

    async def ask() -> list[str]:
        registry = ctx.params.get("registry") or os.environ.get("HOMEPORT_REGISTRY") or REGISTRY_DEFAULT
        async with Client(*registry.split(","), name="homeport completion", token=token()) as client:
            if not await client.wait_connected(COMPLETION_S):
                return []
            return sorted(await client.services())

    try:
        return [name for name in asyncio.run(ask()) if name.startswith(incomplete)]
    except HomeportError:
        return []


def json_option(command: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


def settling_options(command: F) -> F:
    """`--min-wait` and `--max-wait`: how changes that come together are taken as one."""
    command = click.option(
        "--max-wait",
        type=click.FloatRange(min=0),
        default=4,
        show_default=True,
        help="Seconds after the first of several changes by which they are acted upon.",
    )(command)
    return click.option(
        "--min-wait",
        type=click.FloatRange(min=0),
        default=0.2,
        show_default=True,
        help="Seconds without another change before one is acted upon.",
    )(command)
