"""How `homeport serve` is told about DNS: options, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from homeport.client.core.errors import InvalidArgument
from homeport.mesh.commands.options import listeners
from homeport.registry import DnsSettings

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--dns",
        type=listeners,
        metavar="HOST:PORT|off",
        default="127.0.0.1:8600",
        show_default=True,
        help="DNS over UDP and TCP; several with commas between them.",
    ),
    click.option(
        "--dns-domain",
        metavar="DOMAIN[,DOMAIN]",
        default=",".join(DnsSettings().domains),
        show_default=True,
        help="The domains it answers for.",
    ),
    click.option(
        "--dns-ttl",
        metavar="SERVICE=S",
        multiple=True,
        help="How long a service's records may be kept; web*=5 is for names that start so, *=5 for all [default: 0].",
    ),
    click.option("--dns-node-ttl", metavar="S", type=int, default=0, help="The same for nodes and addresses."),
    click.option("--dns-negative-ttl", metavar="S", type=int, default=0, help="The same for what is not there."),
    click.option("--dns-only-passing", is_flag=True, help="Leave out instances at warning, not only critical ones."),
    click.option(
        "--dns-udp-bytes",
        metavar="N",
        type=int,
        default=DnsSettings().udp_bytes_max,
        show_default=True,
        help="The largest answer over UDP to another machine.",
    ),
    click.option(
        "--dns-recursor",
        metavar="IP[:PORT]",
        multiple=True,
        help="A server that other names are asked of, in this order; without one they are refused.",
    ),
)


def dns_options(command: F) -> F:
    """All options about DNS; `dns_settings` takes what they hold."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def dns_settings(
    *,
    dns_domain: str,
    dns_ttl: Sequence[str],
    dns_node_ttl: int,
    dns_negative_ttl: int,
    dns_only_passing: bool,
    dns_udp_bytes: int,
    dns_recursor: Sequence[str],
) -> DnsSettings:
    """What the options say.

    Raises:
        click.UsageError: something that cannot be.
    """
    ttls: dict[str, int] = {}
    for text in dns_ttl:
        pattern, equals, ttl = text.rpartition("=")
        if not (pattern and equals and ttl.isascii() and ttl.isdigit()):
            raise click.UsageError(f"--dns-ttl {text!r} is not SERVICE=SECONDS.")
        ttls[pattern] = int(ttl)
    try:
        return DnsSettings(
            domains=tuple(dns_domain.split(",")),
            service_ttl_s=ttls,
            node_ttl_s=dns_node_ttl,
            negative_ttl_s=dns_negative_ttl,
            only_passing=dns_only_passing,
            udp_bytes_max=dns_udp_bytes,
            recursors=tuple(dns_recursor),
        )
    except InvalidArgument as error:
        raise click.UsageError(f"DNS: {error.message}.") from error
