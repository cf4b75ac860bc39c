"""Spans on their way to a collector: OTLP over HTTP, in its JSON encoding, which every collector takes at port 4318.

Strategy: a bounded queue that the data path adds plain values to, and one task that empties it in batches. A collector
that is slow or gone costs spans, which are counted, and never a request. Written here and not with OpenTelemetry's SDK,
which would bring threads, requests and protobuf for one POST a second.
Source: opentelemetry.io, OTLP specification 1.x, "JSON Protobuf Encoding".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

QUEUE_MAX: Final = 4096  # spans that wait: two batches of a busy second while a collector restarts
BATCH_MAX: Final = 512  # spans a request, as OpenTelemetry's own batching has it
EVERY_S: Final = 1.0
TIMEOUT_S: Final = 5.0
_SERVER, _CLIENT = 2, 3  # kinds of span
_ERROR: Final = 2

_log = logging.getLogger("homeport.sidecar")


class Span(msgspec.Struct, frozen=True):
    """One hop. Ids are hex, times are the wall clock's seconds, values of attributes are text or integers."""

    trace: str
    span: str
    parent: str
    name: str
    client: bool  # we have asked somebody (outbound); else we were asked (inbound)
    began_at_s: float
    ended_at_s: float
    failed: bool
    attributes: dict[str, str | int]


def traces_url(endpoint: str) -> str:
    """Where traces go, of a collector that is named by address alone or by its whole URL.

    Raises:
        ValueError: it is no http URL.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{endpoint!r} is not a collector's URL; allowed: http://host:4318")
    return endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"


def encoded(spans: list[Span], service: str) -> bytes:
    """The body of one export."""
    return msgspec.json.encode(
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": _attributes({"service.name": service})},
                    "scopeSpans": [
                        {"scope": {"name": "homeport.sidecar"}, "spans": [_encoded(each) for each in spans]}
                    ],
                }
            ]
        }
    )


def _encoded(span: Span) -> dict[str, Any]:
    return {
        "traceId": span.trace,
        "spanId": span.span,
        "parentSpanId": span.parent,
        "name": span.name,
        "kind": _CLIENT if span.client else _SERVER,
        "startTimeUnixNano": str(int(span.began_at_s * 1e9)),
        "endTimeUnixNano": str(int(span.ended_at_s * 1e9)),
        "attributes": _attributes(span.attributes),
        "status": {"code": _ERROR} if span.failed else {},
    }


def _attributes(values: dict[str, str | int]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"stringValue": value} if isinstance(value, str) else {"intValue": str(value)}}
        for key, value in values.items()
    ]


class Exporter:
    """Sends spans to the collector at `endpoint` as those of `service`."""

    def __init__(self, endpoint: str, service: str) -> None:
        self._url = traces_url(endpoint)
        self._service = service
        self._queue: deque[Span] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._failing = False
        self.exported = 0
        self.dropped = 0

    def add(self, span: Span) -> None:
        """Export a span, soon; dropped if too many wait."""
        if len(self._queue) >= QUEUE_MAX:
            self.dropped += 1
        else:
            self._queue.append(span)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="exporting traces")

    async def _run(self) -> None:
        import aiohttp  # only where traces are exported

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            while not self._closing.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EVERY_S):
                        await self._closing.wait()  # what is left goes now
                while self._queue:
                    if not await self._send(
                        session, [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
                    ):
                        break

    async def _send(self, session: Any, batch: list[Span]) -> bool:
        import aiohttp

        try:
            async with session.post(
                self._url, data=encoded(batch, self._service), headers={"Content-Type": "application/json"}
            ) as response:
                response.raise_for_status()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.dropped += len(batch)
            if not self._failing:
                _log.warning("traces cannot be exported to %s: %s", self._url, str(error) or type(error).__name__)
            self._failing = True
            return False
        self.exported += len(batch)
        self._failing = False
        return True

    async def close(self) -> None:
        """Send what is left, and stop; what cannot be sent within `TIMEOUT_S` is lost."""
        if self._task is not None:
            self._closing.set()
            await asyncio.wait([self._task], timeout=TIMEOUT_S)
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
            self.dropped += len(self._queue)
            self._queue.clear()
