"""What is written down of each request where that is asked for: a line in the access log, a span of its trace.

The data path asks one question, whether there is an observer at all; without one nothing here runs or is allocated.
With one, an exchange bears a `Seen` from its beginning, which the data path fills in, and which becomes an entry and a
span at the end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from homeport.client.core.backoff import Rng
from homeport.client.core.errors import InvalidArgument
from homeport.sidecar.core import access, traces
from homeport.sidecar.core.access import Entry, LogFormat
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.log_file import LogFile
from homeport.sidecar.otlp import Exporter, Span, traces_url

if TYPE_CHECKING:
    from homeport.sidecar.http1.downstream import Downstream
    from homeport.sidecar.http1.exchange import Exchange
    from homeport.sidecar.http1.tries import Tries
    from homeport.sidecar.tcp import Forward

_RETRIED_FLAGS: Final = frozenset({"UF", "UC", "UT"})  # with one of these, URX says that retries did not help


class Observing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be written down of requests; all of it off by default."""

    access_log: str | None = None  # a file, or "-" for standard output
    log_format: LogFormat = "json"
    tracing: float | None = None  # take part in traces; the share of new ones that is sampled, 0 to 1
    otlp: str | None = None  # the collector that sampled spans go to, http://host:4318; needs `tracing`
    service: str = "homeport-sidecar"  # whose spans these are

    def __post_init__(self) -> None:
        if self.tracing is not None and not 0.0 <= self.tracing <= 1.0:
            raise InvalidArgument(f"tracing is {self.tracing}; allowed: 0 to 1", field="tracing")
        if self.otlp is not None:
            if self.tracing is None:
                raise InvalidArgument("otlp exports traces, which need tracing=0 to 1", field="otlp")
            try:
                traces_url(self.otlp)
            except ValueError as error:
                raise InvalidArgument(str(error), field="otlp") from None

    @property
    def anything(self) -> bool:
        return self.access_log is not None or self.tracing is not None


NOTHING: Final = Observing()


class Seen:
    """What the data path tells of one exchange."""

    __slots__ = ("began_at_s", "bytes_in", "bytes_out", "context", "flag", "status", "target")

    def __init__(self, target: bytes) -> None:
        self.began_at_s = time.time()
        self.target = target  # as it came: routing may rewrite it
        self.status = 0
        self.flag = ""
        self.bytes_in = 0
        self.bytes_out = 0
        self.context: traces.Context | None = None


class Observer:
    """Writes down what `Observing` asks for."""

    def __init__(self, observing: Observing, rng: Rng) -> None:
        self._rng = rng
        self._format = observing.log_format
        self._sampling = observing.tracing
        self.log = LogFile(observing.access_log) if observing.access_log is not None else None
        self.exporter = Exporter(observing.otlp, observing.service) if observing.otlp is not None else None

    def start(self) -> None:
        """Begin.

        Raises:
            OSError: the log cannot be opened.
        """
        if self.log is not None:
            self.log.open()
        if self.exporter is not None:
            self.exporter.start()

    def sweep(self) -> None:
        if self.log is not None:
            self.log.sweep()

    async def close(self) -> None:
        if self.log is not None:
            await self.log.close()
        if self.exporter is not None:
            await self.exporter.close()

    def began(self, exchange: Tries) -> Seen:
        """An exchange begins; its request's trace headers become ours."""
        request = exchange.request
        seen = Seen(request.target)
        if self._sampling is not None:
            seen.context, request.lines = traces.join(request.lines, self._sampling, self._rng)
        return seen

    def ended(self, exchange: Exchange, seen: Seen) -> None:
        """An exchange is over."""
        request, cluster = exchange.request, exchange.cluster
        ended_at_s = time.time()
        flags = seen.flag
        if exchange.exhausted(seen.status) and (not flags or flags in _RETRIED_FLAGS):
            flags = f"{flags},URX" if flags else "URX"
        service = cluster.service if cluster is not None else ""
        tried = exchange.tried
        upstream = f"{tried[-1].address}:{tried[-1].port}" if tried else ""
        context = seen.context
        if self.log is not None:
            entry = Entry(
                time=access.time_of(seen.began_at_s),
                listener=exchange.listener.name,
                client=exchange.downstream.peer.decode("latin-1"),
                method=request.method.decode("latin-1"),
                target=seen.target.decode("latin-1"),
                protocol=f"HTTP/1.{request.minor}",
                host=request.host.decode("latin-1"),
                status=seen.status,
                flags=flags,
                bytes_in=seen.bytes_in,
                bytes_out=seen.bytes_out,
                duration_ms=round((ended_at_s - seen.began_at_s) * 1e3, 3),
                service=service,
                upstream=upstream,
                retries=exchange.retries,
                trace_id=context.trace if context is not None else "",
                user_agent=_user_agent(request.lines),
            )
            self.log.add(access.line(entry, self._format))
        if self.exporter is not None and context is not None and context.sampled:
            method = request.method.decode("latin-1")
            attributes: dict[str, str | int] = {
                "http.request.method": method,
                "url.path": seen.target.partition(b"?")[0].decode("latin-1"),
                "http.response.status_code": seen.status,
                "server.address": request.host.decode("latin-1"),
                "homeport.service": service,
                "homeport.listener": exchange.listener.name,
                "network.peer.address": upstream,
                "http.request.resend_count": exchange.retries,
                "homeport.response_flags": flags,
            }
            self.exporter.add(
                Span(
                    trace=context.trace,
                    span=context.span,
                    parent=context.parent,
                    name=f"{method} {service}" if service else method,
                    client=exchange.listener.name == "outbound",
                    began_at_s=seen.began_at_s,
                    ended_at_s=ended_at_s,
                    failed=seen.status >= 500 or seen.status == 0,
                    attributes={key: value for key, value in attributes.items() if value not in ("", 0)},
                )
            )

    def refused(self, downstream: Downstream, refusal: Refusal) -> None:
        """A client was turned away before there was a request."""
        if self.log is not None:
            entry = Entry(
                time=access.time_of(time.time()),
                listener=downstream.listener.name,
                client=downstream.peer.decode("latin-1"),
                status=refusal.status,
                flags=refusal.flag or "DPE",
                bytes_in=0,
                bytes_out=0,
                duration_ms=0.0,
            )
            self.log.add(access.line(entry, self._format))

    def forwarded(self, forward: Forward) -> None:
        """A TCP connection is over."""
        if self.log is not None:
            took_s = forward.listener.now() - forward.began_s
            tried, upstream = forward.tried, forward.upstream
            entry = Entry(
                time=access.time_of(time.time() - took_s),
                listener=forward.listener.name,
                client=forward.peer.decode("latin-1"),
                status=0,
                flags=forward.flag,
                bytes_in=forward.client.received,
                bytes_out=upstream.received if upstream is not None else 0,
                duration_ms=round(took_s * 1e3, 3),
                service=forward.listener.service,
                upstream=f"{tried[-1].address}:{tried[-1].port}" if tried else "",
                retries=max(0, len(tried) - 1),
            )
            self.log.add(access.line(entry, self._format))


def _user_agent(lines: list[bytes]) -> str:
    for line in lines:
        if line[:11].lower() == b"user-agent:":
            return line[11:].strip().decode("latin-1")
    return ""
