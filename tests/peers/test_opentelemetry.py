"""Spans of sidecars beside those of OpenTelemetry's own SDK, in one receiver that reads both by their schema."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from homeport.sidecar import Observing, Sidecar

IDS = ("traceId", "spanId", "parentSpanId")


def schema() -> Any:
    return pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")


def rebased(spans: list[dict[str, Any]]) -> None:
    """Ids are hex in OTLP's JSON, its one exception to the JSON of protobuf, which the parser knows in base64."""
    for span in spans:
        for name in IDS:
            assert len(span.get(name, "")) in (0, 16, 32), "hex, of the right length"
            span[name] = base64.b64encode(bytes.fromhex(span.get(name, ""))).decode()


@dataclass
class Receiver:
    """Takes OTLP over HTTP, in both encodings; what the schema does not know is an error."""

    url: str = ""
    spans: dict[str, tuple[str, Any]] = field(default_factory=dict)  # by id: whose service's, and the span
    encodings: set[str] = field(default_factory=set)

    async def take(self, request: web.Request) -> web.Response:
        json_format = pytest.importorskip("google.protobuf.json_format")
        body = await request.read()
        self.encodings.add(request.content_type)
        if request.content_type == "application/json":
            said = json.loads(body)
            for resource in said["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    rebased(scope["spans"])
            export = json_format.Parse(json.dumps(said), schema().ExportTraceServiceRequest())
        else:
            export = schema().ExportTraceServiceRequest.FromString(body)
        for resource in export.resource_spans:
            (service,) = (
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            )
            for scope in resource.scope_spans:
                self.spans |= {span.span_id.hex(): (service, span) for span in scope.spans}
        return web.Response(body=b"" if request.content_type != "application/json" else b"{}")


@asynccontextmanager
async def served(path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", path, handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


class Traced:
    """A service that OpenTelemetry's SDK traces: its spans leave by the SDK's own exporter, in protobuf."""

    def __init__(self, name: str, url: str) -> None:
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        export = pytest.importorskip("opentelemetry.sdk.trace.export")
        otlp = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        resources = pytest.importorskip("opentelemetry.sdk.resources")
        self.api = pytest.importorskip("opentelemetry.trace")
        self.propagator = pytest.importorskip("opentelemetry.trace.propagation.tracecontext")
        self.provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": name}))
        self.provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter(endpoint=url)))
        self.tracer = self.provider.get_tracer("app")
        self.onward = ""  # the outbound that it calls prices through, if it does

    async def answer(self, request: web.Request) -> web.Response:
        passing = self.propagator.TraceContextTextMapPropagator()
        context = passing.extract(carrier={name.lower(): value for name, value in request.headers.items()})
        kinds = self.api.SpanKind
        with self.tracer.start_as_current_span("serve", context=context, kind=kinds.SERVER):
            if self.onward:
                with self.tracer.start_as_current_span("call", kind=kinds.CLIENT):
                    headers = {"host": "prices"}
                    passing.inject(headers)
                    async with aiohttp.ClientSession() as session:
                        await session.get(f"http://{self.onward}/price", headers=headers)
            return web.Response(text="done")

    async def close(self) -> None:
        await asyncio.to_thread(self.provider.shutdown)


async def test_a_trace_over_two_sidecars_and_two_services_of_the_sdk_is_one_chain() -> None:
    receiver = Receiver()
    async with AsyncExitStack() as stack:
        receiver.url = f"http://{await stack.enter_async_context(served('/v1/traces', receiver.take))}/v1/traces"
        orders, prices = Traced("orders", receiver.url), Traced("prices", receiver.url)
        at = {
            name: await stack.enter_async_context(served("/{path:.*}", app.answer))
            for name, app in (("orders", orders), ("prices", prices))
        }

        def beside(service: str) -> dict[str, Any]:
            observing = Observing(tracing=1.0, otlp=receiver.url, service=f"{service}'s sidecar")
            return {"inbound": "127.0.0.1:0", "app": at[service], "observing": observing}

        async with (
            Sidecar(outbound=None, **beside("prices")) as callee,
            Sidecar(outbound="127.0.0.1:0", static={"prices": [callee.at["inbound"]]}, **beside("orders")) as caller,
            aiohttp.ClientSession() as session,
        ):
            orders.onward = caller.at["outbound"]
            assert (await session.get(f"http://{caller.at['inbound']}/order?x=1")).status == 200
        await orders.close()
        await prices.close()

    assert receiver.encodings == {"application/json", "application/x-protobuf"}
    assert len({span.trace_id for _, span in receiver.spans.values()}) == 1
    by_parent = {span.parent_span_id.hex(): (service, span) for service, span in receiver.spans.values()}
    chain, parent = [], ""
    while parent in by_parent:
        service, span = by_parent[parent]
        chain.append((service, span.name, span.kind))
        parent = span.span_id.hex()
    server, client = 2, 3
    assert chain == [
        ("orders's sidecar", "GET app", server),
        ("orders", "serve", server),
        ("orders", "call", client),
        ("orders's sidecar", "GET prices", client),
        ("prices's sidecar", "GET app", server),
        ("prices", "serve", server),
    ]
    _, first = by_parent[""]
    said = {each.key: each.value for each in first.attributes}
    assert said["url.path"].string_value == "/order"
    assert said["http.response.status_code"].int_value == 200
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for _, span in receiver.spans.values())
