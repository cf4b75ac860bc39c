"""`python -m homeport.mesh.simulation`: search seeds, look at one, keep one; `make simulate` calls it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from homeport.mesh.simulation.coverage import SHARE_MIN, UNDECIDED
from homeport.mesh.simulation.generate import generate
from homeport.mesh.simulation.run import Result, run
from homeport.mesh.simulation.scenario import Scenario, load, save
from homeport.mesh.simulation.search import FAILURES_MAX, Outcome, Search, search
from homeport.mesh.simulation.shrink import shrink

ENOUGH_SEEDS = 1_000  # from which on an event that never occurred says something
TRACE_LINES = 120  # of a failure, the last; --trace shows all
COMMAND = "python -m homeport.mesh.simulation"


@click.command()
@click.option("--seeds", default=1_000, show_default=True, help="How many seeds to run.")
@click.option("--first", default=1, show_default=True, help="The first of them.")
@click.option("--processes", default=0, help="How many at once.  [default: the number of cores]")
@click.option("--failures", default=FAILURES_MAX, show_default=True, help="Enough failing seeds to stop at.")
@click.option("--replay", type=click.Path(exists=True, path_type=Path), help="Run a scenario's file instead.")
@click.option("--keep", type=click.Path(path_type=Path), help="Shrink seed --first and write its scenario there.")
@click.option("--trace", is_flag=True, help="Show the whole trace of a single run.")
def main(
    seeds: int, first: int, processes: int, failures: int, replay: Path | None, keep: Path | None, trace: bool
) -> None:
    """Search for a seed that breaks a guarantee."""
    if replay is not None or keep is not None or trace:
        result = run(load(replay) if replay is not None else generate(first))
        _show(result, everything=trace)
        if keep is not None and result.violations:
            save(keep, _shrunk(result).scenario)
            click.echo(f"kept as {keep}: it is a regression test from now on")
        sys.exit(bool(result.violations))
    found = search(range(first, first + seeds), processes=processes, failures_max=failures, told=_progress)
    click.echo(err=True)
    too_rare = _report(found)
    for failure in found.failures[:1]:
        result = run(generate(failure.seed))
        click.echo(f"\nseed {failure.seed} fails; made shorter:")
        _show(_shrunk(result), everything=False)
        click.echo(f"\nthe whole of it:      {COMMAND} --first {failure.seed} --trace")
        click.echo(f"a regression test:    make keep-seed SEED={failure.seed}")
    sys.exit(bool(found.failures or too_rare))


def _progress(found: Search) -> None:
    if sys.stderr.isatty() or found.seeds % 200 == 0:
        rate = found.seeds / max(found.wall_s, 1e-9)
        line = (
            f"{found.seeds} seeds, {found.simulated_s / 3600:.2f} simulated hours, {rate:.1f} seeds/s, "
            f"{len(found.failures)} failed"
        )
        click.echo(f"\r{line}" if sys.stderr.isatty() else line, err=True, nl=not sys.stderr.isatty())
    if found.last is not None and found.last.broken:  # said at once: a long search need not be waited for
        click.echo(f"{chr(13) * sys.stderr.isatty()}{_failed(found.last)}", err=True)


def _failed(failure: Outcome) -> str:
    return f"seed {failure.seed}: {failure.broken[0][:300]}"


def _report(found: Search) -> list[str]:
    """Say what was found; return the events that occurred too rarely."""
    too_rare: list[str] = []
    click.echo(
        f"{found.seeds} seeds in {found.wall_s:.0f} s: {found.simulated_s / 3600:.1f} simulated hours, "
        f"{found.steps / 1e6:.1f} million callbacks"
    )
    for event, share in sorted(found.shares().items(), key=lambda one: -one[1]):
        rare = share < SHARE_MIN and found.seeds >= ENOUGH_SEEDS
        too_rare += [event] * rare
        click.echo(f"  {share:7.2%}  {event}{'   <-- too rare' * rare}")
    if undecided := found.occurred[UNDECIDED]:
        click.echo(f"  {undecided / found.seeds:7.2%}  {UNDECIDED}: whether keys were linearizable there is not known")
    for failure in found.failures:
        click.echo(_failed(failure))
    click.echo("every guarantee held" if not found.failures else f"{len(found.failures)} seeds failed")
    return too_rare


def _shrunk(result: Result) -> Result:
    """The same failure with as few steps as were found to do."""
    guarantee = result.violations[0].guarantee

    def fails(scenario: Scenario) -> bool:
        violations = run(scenario).violations
        return bool(violations) and violations[0].guarantee == guarantee

    def told(scenario: Scenario) -> None:
        click.echo(f"  {len(scenario.steps)} steps still fail", err=True)

    return run(shrink(result.scenario, fails, told))


def _show(result: Result, *, everything: bool) -> None:
    scenario = result.scenario
    click.echo(f"seed {scenario.seed}, store {scenario.store}, {len(scenario.steps)} steps, trace {result.hash}")
    lines = result.trace if everything else result.trace[-TRACE_LINES:]
    for line in lines:
        click.echo(line)
    for violation in result.violations:
        click.echo(f"BROKEN: {violation}")
    if not result.violations:
        click.echo("every guarantee held")


if __name__ == "__main__":
    main()
