"""`homeport top`: what goes through sidecars right now, service by service and instance by instance.

Strategy: every interval the admin ports are asked for their counters; two samples make a frame, which is plain values
and knows nothing of terminals. Counters of several sidecars are added as those of workers are. The registry adds the
services that no sidecar has been asked for; without it, or without one of the sidecars, the rest is shown all the same.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from homeport.client import Client, HomeportError, Unavailable
from homeport.mesh.commands.options import address, json_option, registry_option
from homeport.mesh.commands.output import print_json, table
from homeport.mesh.commands.running import ExitCode, run_and_exit
from homeport.mesh.token import token
from homeport.sidecar.core import sums
from homeport.sidecar.core.histogram import quantile

if TYPE_CHECKING:
    import aiohttp
    from rich.console import Console, Group

ANSWER_S: Final = 2.0  # for an admin port to answer, which may have to ask its workers; then it is shown as silent
REGISTRY_S: Final = 0.5  # and for the registry, so that one that is gone does not slow the view down
SERVICES_MAX: Final = 200  # of the registry's, whose instances are counted one service at a time

Sample = dict[str, Any]


def admin_ports(text: str) -> tuple[str, ...]:
    """An option's type: HOST:PORT, several with commas between them."""
    return tuple(address(each) for each in text.split(","))


@click.command()
@click.option(
    "--admin",
    type=admin_ports,
    metavar="HOST:PORT[,...]",
    default="127.0.0.1:15000",
    show_default=True,
    help="The admin ports of the sidecars to look at.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    help="Seconds between two looks; rates are those of this time.",
)
@click.option("--once", is_flag=True, help="Print one frame and end, as a pipe gets it.")
@registry_option
@json_option
def top(admin: tuple[str, ...], interval: float, once: bool, registry: str, as_json: bool) -> None:
    """Watch services, instances, rates, latencies and ejections live; Ctrl-C ends it.

    With --json, a pipe or --once, one frame is printed. Exit code 3 if no sidecar can be reached.
    """

    async def work() -> int:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            Client(*registry.split(","), token=token()) as client,
        ):
            before = await sample(session, client, admin)
            if not before["sidecars"]:
                raise Unavailable(f"no sidecar answers at {', '.join(admin)}; --admin says where they are")
            if once or as_json or not sys.stdout.isatty():
                await asyncio.sleep(interval)
                made = frame(before, await sample(session, client, admin))
                if as_json:
                    print_json(made)
                else:
                    _console().print(drawn(made, terminal=sys.stdout.isatty()))
                return ExitCode.DONE
            from rich.live import Live

            with Live(console=_console(), screen=True, auto_refresh=False) as live:
                while True:
                    await asyncio.sleep(interval)
                    after = await sample(session, client, admin)
                    live.update(drawn(frame(before, after), terminal=True), refresh=True)
                    before = after

    try:
        run_and_exit(work())
    except KeyboardInterrupt:
        click.get_current_context().exit(ExitCode.DONE)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


async def sample(session: aiohttp.ClientSession, client: Client, admin: Sequence[str]) -> Sample:
    """What everybody says now."""
    registered = asyncio.ensure_future(_registered(client))
    asked = await asyncio.gather(*(_ask(session, each) for each in admin))
    answers = [each for each in asked if each is not None]
    return {
        "at_s": asyncio.get_running_loop().time(),
        "sidecars": [each for each, answer in zip(admin, asked, strict=True) if answer is not None],
        "silent": [each for each, answer in zip(admin, asked, strict=True) if answer is None],
        "clusters": sums.added([clusters for clusters, _ in answers]) or [],
        "stats": sums.added([stats for _, stats in answers]) or {},
        "registry": await registered,
    }


async def _ask(session: aiohttp.ClientSession, admin: str) -> tuple[Any, Any] | None:
    import aiohttp

    try:
        async with session.get(f"http://{admin}/clusters") as clusters, session.get(f"http://{admin}/stats") as stats:
            return await clusters.json(), await stats.json()
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None


async def _registered(client: Client) -> dict[str, int] | None:
    """The registry's services and how many instances of each it lets take traffic; None if it does not answer."""
    try:
        async with asyncio.timeout(REGISTRY_S):
            names = sorted(await client.services())[:SERVICES_MAX]
            return {name: len(await client.resolve(name, passing=True)) for name in names}
    except (HomeportError, TimeoutError):
        return None


def frame(before: Sample, after: Sample) -> dict[str, Any]:
    """What two samples say together, as plain values. Rates are per second, latencies of the time between the two."""
    took_s: float = max(1e-3, after["at_s"] - before["at_s"])
    earlier = {_key(each): each for each in before["stats"].get("services", [])}
    hosts_earlier = {(_key(each), _host(one)): one for each in before["clusters"] for one in each["endpoints"]}
    clusters = {_key(each): each for each in after["clusters"]}

    def rate(new: Mapping[str, Any], old: Mapping[str, Any], field: str) -> float:
        more: float = new[field] - old.get(field, 0)
        return round(max(0.0, more) / took_s, 1)  # a sidecar that restarted counts from 0

    services, instances = [], []
    for each in after["stats"].get("services", []):
        old = earlier.get(_key(each), {})
        endpoints = clusters.get(_key(each), {}).get("endpoints", [])
        answers, answers_old = each["requests"], old.get("requests", {})
        failed = {"failed": answers["5xx"] + answers["none"]}
        failed_old = {"failed": answers_old.get("5xx", 0) + answers_old.get("none", 0)}
        times = [max(0, new - old.get("times", {}).get(bound, 0)) for bound, new in each["times"].items()]
        services.append(
            {
                "service": each["service"],
                "direction": each["direction"],
                "instances": len(endpoints),
                "available": sum(one["available"] for one in endpoints),
                "ejected": sum(one["ejected"] for one in endpoints),
                "active": sum(one["active"] for one in endpoints),
                "per_s": rate({"all": sum(answers.values())}, {"all": sum(answers_old.values())}, "all"),
                "failed_per_s": rate(failed, failed_old, "failed"),
                "retries_per_s": rate(each, old, "retries"),
                "p50_ms": _ms(quantile(times, 0.5)),
                "p99_ms": _ms(quantile(times, 0.99)),
                "age_s": clusters.get(_key(each), {}).get("age_s"),
            }
        )
        for one in endpoints:
            host_old = hosts_earlier.get((_key(each), _host(one)), {})
            answered = one["answers"] - host_old.get("answers", 0)
            took = one["answers_s"] - host_old.get("answers_s", 0.0)
            instances.append(
                {
                    "service": each["service"],
                    "direction": each["direction"],
                    "id": one["id"],
                    "address": one["address"],
                    "state": _state(one),
                    "active": one["active"],
                    "per_s": rate(one, host_old, "answers"),
                    "mean_ms": round(took / answered * 1e3, 2) if answered > 0 else None,
                    "ejections": one["ejections"],
                }
            )
    ports = {each["service"]: each for each in before["stats"].get("tcp", [])}
    tcp = [
        {
            "service": each["service"],
            "connections": each["connections"],
            "per_s": rate(each, ports.get(each["service"], {}), "connections_total"),
        }
        for each in after["stats"].get("tcp", [])
    ]
    used = {each["service"] for each in services}
    registry = after["registry"]
    return {
        "sidecars": after["sidecars"],
        "silent": after["silent"],
        "registry": registry is not None,
        "services": sorted(services, key=lambda each: (-each["per_s"], each["service"], each["direction"])),
        "instances": sorted(instances, key=lambda each: (each["service"], each["direction"], each["id"])),
        "tcp": tcp,
        "unused": {name: count for name, count in (registry or {}).items() if name not in used},
    }


def _key(each: Mapping[str, Any]) -> tuple[str, str]:
    return each["direction"], each["service"]


def _host(endpoint: Mapping[str, Any]) -> tuple[str, str, str]:
    return endpoint["node"], endpoint["id"], endpoint["address"]


def _state(endpoint: Mapping[str, Any]) -> str:
    """One word for how an instance is met; the worst of what is said of it."""
    if endpoint["ejected"]:
        return "ejected"
    if endpoint["state"] != "up":
        return str(endpoint["state"])
    return "suspect" if endpoint["suspect"] else str(endpoint["status"])


def _ms(seconds: float | None) -> float | None:
    return round(seconds * 1e3, 2) if seconds is not None else None


_SERVICES: Final = (
    "service", "direction", "instances", "available", "ejected", "active", "per_s", "failed_per_s", "retries_per_s",
    "p50_ms", "p99_ms", "age_s",
)  # fmt: skip
_INSTANCES: Final = ("service", "id", "address", "state", "active", "per_s", "mean_ms", "ejections")
_TCP: Final = ("service", "connections", "per_s")


def drawn(made: dict[str, Any], *, terminal: bool) -> Group:
    """The frame as tables."""
    from rich.console import Group
    from rich.text import Text

    head = f"{len(made['sidecars'])} sidecars"
    if made["silent"]:
        head += f", no answer from {', '.join(made['silent'])}"
    if not made["registry"]:
        head += ", the registry does not answer"
    parts: list[Any] = [Text(head, style="bold")]
    for columns, rows in ((_SERVICES, made["services"]), (_INSTANCES, made["instances"]), (_TCP, made["tcp"])):
        if rows:
            names = [column.replace("_per_s", "/s").replace("per_s", "rate/s").replace("_", " ") for column in columns]
            parts.append(table(names, [[_cell(row[each]) for each in columns] for row in rows], terminal=terminal))
    if made["unused"]:
        unused = ", ".join(f"{name} ({count})" for name, count in made["unused"].items())
        parts.append(Text(f"not called through these sidecars: {unused}", style="dim"))
    return Group(*parts)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
