"""Spans within one process, from a request's `traceparent` to bytes: `python -m benchmarks.load.spans WHOSE SECONDS`.

WHOSE is `homeport` or `opentelemetry-sdk`. Prints `[spans, wall seconds, CPU seconds]`, with the encoding of every
batch, without sending it.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from homeport.sidecar.core import traces
from homeport.sidecar.otlp import BATCH_MAX, Span, encoded

_SEED: Final = 20_260_101
_PARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_ATTRIBUTES: Final[dict[str, str | int]] = {
    "http.request.method": "GET",
    "url.path": "/orders/7",
    "http.response.status_code": 200,
    "server.address": "orders",
    "homeport.service": "orders",
    "homeport.listener": "outbound",
    "network.peer.address": "10.0.0.5:8080",
}


def ours() -> Callable[[int], None]:
    """What the sidecar does."""
    rng = random.Random(_SEED)
    lines = [b"Accept: */*", b"User-Agent: wrk", f"traceparent: {_PARENT}".encode()]

    def spans(count: int) -> None:
        batch = []
        for _ in range(count):
            context, _lines = traces.join(lines, 1.0, rng)
            attributes = {key: value for key, value in _ATTRIBUTES.items() if value not in ("", 0)}
            batch.append(
                Span(context.trace, context.span, context.parent, "GET orders", True, 1.0, 1.5, False, attributes)
            )
        encoded(batch, "bench")

    return spans


def sdk() -> Callable[[int], None]:
    """What OpenTelemetry's SDK does for the same: it hands batches to a thread, whose CPU counts too."""
    sdk_trace: Any = importlib.import_module("opentelemetry.sdk.trace")
    export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
    encoder: Any = importlib.import_module("opentelemetry.exporter.otlp.proto.common.trace_encoder")
    propagation: Any = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
    api: Any = importlib.import_module("opentelemetry.trace")

    class Sink(export.SpanExporter):  # type: ignore[misc]  # its base is not known here
        def export(self, spans: Any) -> Any:
            encoder.encode_spans(spans).SerializeToString()
            return export.SpanExportResult.SUCCESS

    provider = sdk_trace.TracerProvider()
    provider.add_span_processor(export.BatchSpanProcessor(Sink(), max_queue_size=4 * BATCH_MAX))
    tracer, passing = provider.get_tracer("bench"), propagation.TraceContextTextMapPropagator()

    def spans(count: int) -> None:
        for _ in range(count):
            context = passing.extract({"traceparent": _PARENT})
            span = tracer.start_span("GET orders", context=context, kind=api.SpanKind.CLIENT, attributes=_ATTRIBUTES)
            passing.inject({}, api.set_span_in_context(span))
            span.end()
        provider.force_flush()

    return spans


def main() -> None:
    """The command line."""
    whose, duration = sys.argv[1:]
    spans = ours() if whose == "homeport" else sdk()
    made, cpu_at, started_at = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - started_at < float(duration):
        spans(BATCH_MAX)
        made += BATCH_MAX
    print(json.dumps([made, time.perf_counter() - started_at, time.process_time() - cpu_at]))


if __name__ == "__main__":
    main()
