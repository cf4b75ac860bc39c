"""What does a span cost: the sidecar's own way, and OpenTelemetry's SDK."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from benchmarks.case import RATE, SERVER_CPU, Case, Contender, Measure, Scale
from benchmarks.load import driver
from benchmarks.servers import Stage

_START_S: Final = 30.0  # for a process to start, beyond its own duration


def missing() -> str:
    """Why the SDK cannot take part, or nothing."""
    there = importlib.util.find_spec("opentelemetry") and importlib.util.find_spec("opentelemetry.exporter")
    return "" if there else "opentelemetry-sdk and its OTLP exporter are not installed (make peers)"


def cases(scale: Scale) -> tuple[Case, ...]:
    """Spans in process, from the request's header to the batch's bytes."""
    return (
        Case(
            "tracing/span",
            "how many spans a second can one Python process join, record and encode?",
            "a span with seven attributes in a trace of somebody else, in batches of 512; nothing is sent",
            "homeport",
            (
                Contender("homeport", "plain structs, OTLP's JSON", _spans("homeport", scale)),
                Contender(
                    "opentelemetry-sdk", "its SDK, OTLP in protobuf", _spans("opentelemetry-sdk", scale), missing()
                ),
            ),
            metrics=(RATE, SERVER_CPU),
        ),
    )


def _spans(whose: str, scale: Scale) -> Callable[[Stage], AbstractContextManager[Measure]]:
    @contextmanager
    def turns(stage: Stage) -> Iterator[Measure]:
        command = [sys.executable, "-m", "benchmarks.load.spans", whose, str(scale.turn_s / 2)]
        yield lambda: driver.in_process(command, stage.cores, scale.turn_s + _START_S)

    return turns
