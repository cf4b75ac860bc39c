"""What the demo shows while it runs: a live table on a terminal, plain lines in a pipe, or nothing.

Everything goes to standard error: standard output holds the one line of JSON at the end.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import click

from homeport.client import Instance
from homeport.mesh.demo.report import Tally, percentile

if TYPE_CHECKING:  # rich costs a tenth of a second, and only a terminal needs it
    from rich.console import RenderableType
    from rich.live import Live

EVENTS_SHOWN: Final = 8
LINE_INTERVAL_S: Final = 2.0  # between two lines of counts in a pipe

# Per service its instances as the registry last told; None while it cannot be asked.
View = Mapping[str, tuple[Instance, ...]] | None


class Progress(Protocol):
    """Who watches the demo."""

    def tell(self, event: str) -> None:
        """Something happened."""
        ...

    def show(self, tally: Tally, view: View) -> None:
        """How things stand; called a few times a second."""
        ...

    def close(self) -> None:
        """Nothing more will happen."""
        ...


class Silent:
    """For programs, which want the JSON alone."""

    def tell(self, event: str) -> None:
        pass

    def show(self, tally: Tally, view: View) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(slots=True)
class Lines:
    """For pipes and logs."""

    _started: float = field(default_factory=time.monotonic, init=False)
    _next_line: float = field(default=0.0, init=False)

    def tell(self, event: str) -> None:
        click.echo(f"{time.monotonic() - self._started:5.1f} s  {event}", err=True)

    def show(self, tally: Tally, view: View) -> None:
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_INTERVAL_S
            self.tell(f"    {counts(tally)}{'' if view is not None else ', registry away'}")

    def close(self) -> None:
        pass


class Screen:
    """For people at a terminal: one row per service, and the last events below."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._started = time.monotonic()
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self._tally = Tally()
        self._view: View = {}
        self._live: Live = Live(console=Console(stderr=True), auto_refresh=False)
        self._live.start()

    def tell(self, event: str) -> None:
        self._events.append(f"{time.monotonic() - self._started:5.1f} s  {event}")
        self._draw()

    def show(self, tally: Tally, view: View) -> None:
        self._tally = tally
        # While the registry is away, what it said last is what the sidecars go by too.
        self._view = self._view if view is None else view
        self._draw(away=view is None)

    def close(self) -> None:
        self._draw()
        self._live.stop()

    def _draw(self, away: bool = False) -> None:
        self._live.update(self._picture(away), refresh=True)

    def _picture(self, away: bool) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        served = Counter[str]()
        for instance_id, count in self._tally.served_by.items():
            served[instance_id.rpartition("-")[0]] += count
        table = Table(title="five services, and things that break")
        for column in ("service", "instances", "versions", "answers to users"):
            table.add_column(column, justify="right" if column == "answers to users" else "left")
        for service, instances in (self._view or {}).items():
            line = Text()
            for instance in sorted(instances, key=lambda each: each.key):
                style = "green" if instance.available else "yellow" if instance.state == "draining" else "red"
                line.append("● ", style="dim" if away else style)
            versions = ", ".join(sorted({instance.version for instance in instances}))
            table.add_row(service, line, versions, str(served[service]))
        status = Text(counts(self._tally), style="bold red" if self._tally.failures else "bold green")
        if away:
            status.append("   registry away", style="yellow")
        return Group(table, status, Text("\n".join(self._events), no_wrap=True, overflow="ellipsis"))


def counts(tally: Tally) -> str:
    """The counts so far, in words."""
    p50, p99 = (percentile(tally.latencies_ms, share) for share in (0.50, 0.99))
    return f"{tally.requests} requests, {len(tally.failures)} failed, p50 {p50:.0f} ms, p99 {p99:.0f} ms"
