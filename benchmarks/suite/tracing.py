"""What does a span cost: the sidecar's own way, and OpenTelemetry's SDK."""

from __future__ import annotations

import importlib.util

from benchmarks.case import RATE, SERVER_CPU, Case, Contender, Scale
from benchmarks.contenders.program import program


def missing() -> str:
    """Why the SDK cannot take part, or nothing."""
    there = importlib.util.find_spec("opentelemetry") and importlib.util.find_spec("opentelemetry.exporter")
    return "" if there else "opentelemetry-sdk and its OTLP exporter are not installed (make bench-peers)"


def cases(scale: Scale) -> tuple[Case, ...]:
    """Spans in process, from the request's header to the batch's bytes."""
    return (
        Case(
            "tracing/span",
            "how many spans a second can one Python process join, record and encode?",
            "a span with seven attributes in a trace of somebody else, in batches of 512; nothing is sent",
            "homeport",
            (
                Contender("homeport", "plain structs, OTLP's JSON", program("spans", "homeport", turn_s=scale.turn_s)),
                Contender(
                    "opentelemetry-sdk",
                    "its SDK, OTLP in protobuf",
                    program("spans", "opentelemetry-sdk", turn_s=scale.turn_s),
                    missing(),
                ),
            ),
            metrics=(RATE, SERVER_CPU),
            warm_ups=0,
        ),
    )
