"""`homeport demo`: the whole path in a minute, on real processes, with the count of what users noticed."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

import click

from homeport.mesh.commands.running import ExitCode, StopSignals, run_and_exit

_SECONDS_MAX = 25  # of load: with starting up and two slow cores, the minute is full
_FAILURES_SHOWN = 10


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(1, _SECONDS_MAX),
    default=12,
    show_default=True,
    help="How long users are there at least; what breaks meanwhile is always mended first.",
)
@click.option("--seed", type=int, help="What users do and what breaks, drawn from this [default: another each time].")
@click.option("--keep", is_flag=True, help="Leave the site running afterwards, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Show no progress, only the line of JSON.")
def demo(seconds: float, seed: int | None, keep: bool, as_json: bool) -> None:
    """Run a picture-sharing site of five services under load while things break.

    Instances are killed, the registry is restarted, a service is rolled to a new version. Ends with one line of JSON;
    the exit code is 0 only if no user saw a failed request.
    """
    if sys.platform == "win32":
        raise click.ClickException("the demo ends processes by POSIX signals, which Windows has not.")
    run_and_exit(_demo(seconds, random.randrange(1_000_000) if seed is None else seed, keep, as_json))


async def _demo(seconds: float, seed: int, keep: bool, as_json: bool) -> int:
    signals = StopSignals()
    directory = Path(tempfile.mkdtemp(prefix="homeport-demo-"))
    stopped = asyncio.create_task(signals.next())
    try:
        code = await _perform(directory, seconds, seed, keep, as_json, stopped)
    finally:
        stopped.cancel()
    if code == ExitCode.NO:
        click.echo(f"homeport: the logs are in {directory}", err=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return code


async def _perform(
    directory: Path, seconds: float, seed: int, keep: bool, as_json: bool, stopped: asyncio.Task[int]
) -> int:
    """Play, print what came of it, and return the exit code; `stopped` ends it early, or ends what `keep` keeps."""
    from homeport.mesh.demo.performance import perform
    from homeport.mesh.demo.progress import Lines, Progress, Screen, Silent
    from homeport.mesh.demo.site import Site

    progress: Progress = Silent() if as_json else Screen() if sys.stderr.isatty() else Lines()
    async with Site(directory, random.Random(seed), progress.tell) as site:
        performing = asyncio.create_task(perform(site, progress, seed, seconds))
        try:
            await asyncio.wait([performing, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not performing.done():
                performing.cancel()
                await asyncio.gather(performing, return_exceptions=True)
            progress.close()
        if performing.cancelled():
            click.echo("homeport: stopped before the end", err=True)
            return 128 + stopped.result()
        outcome = performing.result()
        for failure in outcome.failures[:_FAILURES_SHOWN]:
            click.echo(f"failed: {failure.reason}", err=True)
        if outcome.error:
            click.echo(f"homeport: {outcome.error}", err=True)
        click.echo(outcome.line())
        if keep and not outcome.error:
            click.echo(f"homeport: still running; edge {site.edge}  http {site.http}  rpc {site.rpc}", err=True)
            click.echo(f"  curl -x http://{site.edge} 'http://search/search?tag=boat'", err=True)
            click.echo(f"  homeport instances feed --registry {site.rpc}", err=True)
            click.echo("  Ctrl-C ends it.", err=True)
            await stopped
        return ExitCode.DONE if outcome.good else ExitCode.NO
