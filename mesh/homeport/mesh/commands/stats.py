"""`homeport stats`: the registry's numbers, with units for people, as they are for programs."""

from __future__ import annotations

import click

from homeport.client import Client
from homeport.client.core.messages import Stats, StatsReport, Welcome
from homeport.mesh.commands.options import json_option, registry_option
from homeport.mesh.commands.output import print_json, print_table
from homeport.mesh.commands.running import ExitCode, ask


@click.command()
@registry_option
@json_option
def stats(registry: str, as_json: bool) -> None:
    """Show the registry's numbers: revision, keys, leases, watchers, how its journal keeps up."""

    async def question(client: Client) -> int:
        report = await client.call(Stats())
        welcome = client.welcome
        if as_json:
            names = {} if welcome is None else {"server": welcome.server, "node": welcome.node}
            print_json({"store_id": report.store_id, **names, **report.numbers})
        else:
            print_table(["what", "now"], [list(row) for row in table(report, welcome)])
        return ExitCode.DONE

    ask(registry, question)


def table(report: StatsReport, welcome: Welcome | None) -> list[tuple[str, str]]:
    """The numbers in words; one that this registry does not tell is left out."""
    numbers = report.numbers
    rows = [("store", report.store_id)]
    if welcome is not None:
        rows += [("server", welcome.server), ("node", welcome.node)]
    rows.append(("writable", "no: /readyz says why" if numbers.get("read_only") else "yes"))
    rows += [(words, _said(name, numbers[name])) for name, words in _WORDS.items() if name in numbers]
    return rows


_WORDS = {
    "revision": "revision, on disk",
    "head_revision": "revision, with what is on its way there",
    "compact_revision": "history reaches back to revision",
    "keys": "keys, those of instances, checks and leases too",
    "value_bytes": "their values",
    "services": "services",
    "instances": "instances",
    "instances_stale": "of them kept after a mass expiry",
    "instances_unwritten": "of them failed, which cannot be written",
    "leases": "leases",
    "watches": "watches of clients",
    "watchers": "watchers of keys",
    "connections": "connections",
    "journal_waiting": "writes waiting for the disk",
    "journal_commit_us": "last write to disk, fsync included",
    "loop_late_max_us": "longest stall of the loop",
}


def _said(name: str, number: int) -> str:
    if name.endswith("_us"):
        return f"{number / 1000:,.1f} ms" if number else "none yet"
    if name.endswith("_bytes"):
        return _size(number)
    return f"{number:,}"


def _size(number: int) -> str:
    size, units = float(number), ["KiB", "MiB", "GiB", "TiB"]
    if number < 1024:
        return f"{number} B"
    unit = ""
    while size >= 1024 and units:
        size, unit = size / 1024, units.pop(0)
    return f"{size:,.1f} {unit}"
