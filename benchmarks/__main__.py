"""`python -m benchmarks NAME|all`: measure, print tables, and with `--json` leave the figures in a file."""

from __future__ import annotations

import argparse
import datetime as dt
import fnmatch
import importlib
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from benchmarks import rounds
from benchmarks.case import FULL, HEADLINES, QUICK
from benchmarks.machine import describe
from benchmarks.report import CaseReport, Report, encode, table

APART: Final = ("balancing", "cluster", "million")  # no part of `all`: nobody is beside them, or they take too long
NAMES: Final = (
    *("lookups", "sidecar", "failover", "departure", "puts", "renewals", "registration", "kv", "fanout", "propagation"),
    *("consul", "dns", "checks", "memory", "holdings", "startup", "growth", "tracing"),
    *APART,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that were asked for; return 1 if anything failed, having measured the rest."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="+",
        choices=[*NAMES, "all"],
        metavar="NAME",
        help=f"{', '.join(NAMES)} or all but {', '.join(APART)}",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="less of everything, and of `all` only what README shows: to look, not to quote",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--results", type=Path, metavar="DIR", help="write each NAME's figures to DIR/NAME.json")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="rounds that count, after the warm-up")
    parser.add_argument("--turn", type=_seconds, metavar="S", help="seconds of load per contender and round")
    parser.add_argument(
        "--instances-max", type=_positive, metavar="N", help="the largest registry of `growth` (a million takes 7 GiB)"
    )
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="where servers keep data: the disk to measure")
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="only the cases whose name fits, as in sidecar/*"
    )
    options = parser.parse_args(arguments)
    work_dir: Path = options.work_dir or Path(tempfile.gettempdir())
    scale = QUICK if options.quick else FULL
    scale = replace(scale, rounds=options.rounds or scale.rounds, turn_s=options.turn or scale.turn_s)
    if options.instances_max:
        sizes = tuple(size for size in scale.sizes if size <= options.instances_max)
        scale = replace(scale, sizes=sizes or (options.instances_max,))
    if options.results and (options.quick or options.only != "*"):
        parser.error("--results replaces what is there: not with --quick or --only, which measure a part; use --json")
    if not hasattr(os, "sched_setaffinity"):
        parser.error("this needs Linux: processes are pinned to cores and their CPU is read from /proc")
    signal.signal(signal.SIGTERM, _stop)
    machine = describe(work_dir)
    everything: list[CaseReport] = []
    failed: list[str] = []

    def report_of(cases: list[CaseReport]) -> Report:
        return Report(started_at=started_at, quick=options.quick, machine=machine, cases=cases)

    started_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    headlines = {name for name, _, _ in HEADLINES} if options.quick and "all" in options.names else frozenset()
    for name in [one for one in NAMES if one not in APART] if "all" in options.names else options.names:
        cases: list[CaseReport] = []
        try:
            for case in importlib.import_module(f"benchmarks.suite.{name}").cases(scale):
                if fnmatch.fnmatch(case.name, options.only) and (not headlines or case.name in headlines):
                    if headlines:
                        case = replace(case, warm_ups=case.warm_ups // 2)
                    begun = time.monotonic()
                    cases.append(rounds.run(case, scale.rounds, _say, work_dir))
                    _say(f"{case.name}: took {time.monotonic() - begun:.0f} s")
                    print(f"\n{table(cases[-1])}\n", flush=True)
        except Exception as error:  # noqa: BLE001 - told below; the others' results are worth having all the same
            failed.append(f"{name}: {type(error).__name__}: {error}")
            _say(traceback.format_exc())
        if options.results and cases:
            options.results.mkdir(parents=True, exist_ok=True)
            (options.results / f"{name}.json").write_bytes(encode(report_of(cases)))
        everything += cases
    print(
        f"machine: {machine.cpu}, {machine.cores} cores, Linux {machine.kernel}, {machine.python}, {machine.filesystem}"
    )
    print("versions: " + ", ".join(f"{name} {version}" for name, version in machine.versions.items()))
    if options.json:
        options.json.write_bytes(encode(report_of(everything)))
    if not everything and not failed:
        parser.error(f"no case of these is called {options.only}")
    failed += [f"{case.name}: {left.name}: {left.why}" for case in everything for left in case.failed]
    for line in failed:
        _say(f"FAILED {line}")
    return 1 if failed else 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError("0.1 to 3600")
    return value


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(143)  # unwinds, so that every server is stopped


if __name__ == "__main__":
    sys.exit(main())
