"""How services are called, as options and files say it: `--service NAME=FILE`, and what a [[service]] table holds."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Final

import click

from homeport.client import InvalidArgument
from homeport.client.core.model import validate_name
from homeport.sidecar import ServiceSettings
from homeport.sidecar.core.settings import settings_of
from homeport.sidecar.tls import upstream_context

EVERYONE: Final = "*"  # the name of all services that have no settings of their own


def service_option(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> dict[str, ServiceSettings]:
    """A callback: repeated NAME=FILE, or NAME={...} with the settings themselves, by service."""
    found: dict[str, ServiceSettings] = {}
    for text in texts:
        name, equals, where = text.partition("=")
        if not (name and equals and where):
            raise click.BadParameter(f"{text!r} is not NAME=FILE.")
        if name.lower() in found:
            raise click.BadParameter(f"{name} has settings twice.")
        try:
            if name != EVERYONE:
                validate_name("service", name)
            found[name.lower()] = _usable(settings_of(_read(where)))
        except (InvalidArgument, OSError, ValueError) as error:  # ValueError: neither JSON nor TOML
            raise click.BadParameter(f"{name}: {error}.") from None
    return found


def _read(where: str) -> Any:
    if where.startswith("{"):
        return json.loads(where)
    text = Path(where).read_text()
    return json.loads(text) if where.endswith(".json") else tomllib.loads(text)


def _usable(settings: ServiceSettings) -> ServiceSettings:
    """The same, if the files that it names can be used: else the first request would find out."""
    if settings.tls is not None:
        try:
            upstream_context(settings.tls)
        except OSError as error:
            raise InvalidArgument(f"tls: its files cannot be used: {error}") from None
    return settings
