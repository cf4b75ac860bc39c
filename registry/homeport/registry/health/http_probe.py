"""One HTTP/1.1 request, its redirects, and as much of the answer as a verdict quotes: a protocol over llhttp, no more.

A client library that pools, decodes, keeps cookies and streams costs several times as much a request; ten thousand
checks every ten seconds are a thousand requests a second. Each request has a connection of its own, which is closed as
soon as enough of the answer is there, so no answer can be too big.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from base64 import b64encode
from importlib.metadata import version
from typing import Final, cast

import httptools
from yarl import URL

from homeport.client.core.model import OUTPUT_BYTES_MAX, Check, Status
from homeport.registry.core.health import CUT_MARK, Verdict
from homeport.registry.health.dialing import Dialer

REDIRECTS_MAX: Final = 10  # as Go's client follows for Consul; the next one is a failure
HEAD_BYTES_MAX: Final = 32_768  # of an answer; four times what most servers allow a request
TOO_MANY_REQUESTS: Final = 429  # the one answer that is a warning, as in Consul
USER_AGENT: Final = f"homeport-health/{version('homeport')}"

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_KEEP_METHOD: Final = frozenset({307, 308})
_PRIVATE: Final = frozenset({"authorization", "cookie", "host", "www-authenticate"})  # not for whom we are sent on to


class NotSent(ValueError):
    """The check asks for what no request can be."""


class BadAnswer(Exception):
    """The target did not answer in HTTP, or not to the end."""


async def look(dialer: Dialer, check: Check, url: URL, progress: list[str]) -> Verdict:
    """Send the check's request, follow where it leads, and judge the last answer.

    Args:
        progress: its last item is put before an error's words; more is added as the answer comes in.

    Raises:
        NotSent, BadAnswer, OSError: there is no answer to judge.
    """
    method, body, headers = check.method, check.body.encode(), dict(check.headers)
    for _ in range(REDIRECTS_MAX + 1):
        tls: ssl.SSLContext | None = dialer.tls(check.tls_verify) if url.scheme == "https" else None
        exchange = _Exchange(_request(method, url, headers, body), method == "HEAD", check.output_bytes_max, progress)
        host = url.raw_host
        if not host or url.port is None:
            raise NotSent(f"{url.with_user(None)} has no host")
        # Held by nobody else until the connection is there; then the `finally` closes it.
        transport, _protocol = await dialer.dial(lambda it=exchange: it, host, url.port, tls, check.tls_name)  # type: ignore[misc]  # mypy cannot infer a lambda's default
        try:
            await exchange.done
        finally:
            transport.abort()
        if not (exchange.status in _REDIRECTS and check.redirects and exchange.location):
            return _verdict(check, exchange, progress[0])
        target = _target(url, exchange.location)
        if exchange.status not in _KEEP_METHOD:
            method, body = ("HEAD" if method == "HEAD" else "GET"), b""
        if (target.raw_host, target.port) != (url.raw_host, url.port):
            headers = {name: value for name, value in headers.items() if name.lower() not in _PRIVATE}
        url = target
    raise BadAnswer(f"more than {REDIRECTS_MAX} redirects")


def _target(url: URL, location: str) -> URL:
    try:
        target = url.join(URL(location))
    except ValueError as error:
        raise BadAnswer(f"it redirects to what is not a URL: {error}") from None
    if target.scheme not in ("http", "https") or not target.raw_host:
        raise BadAnswer(f"it redirects to {target.scheme or 'nowhere'}:, which is not HTTP")
    return target


def _verdict(check: Check, exchange: _Exchange, title: str) -> Verdict:
    status: Status = "critical"
    if 200 <= exchange.status < 300:
        status = "passing"
    elif exchange.status == TOO_MANY_REQUESTS:
        status = "warning"
    body = bytes(exchange.body)
    if len(body) > check.output_bytes_max and check.output_bytes_max < OUTPUT_BYTES_MAX:
        text = body[: check.output_bytes_max].decode("utf-8", "ignore") + CUT_MARK
    else:
        text = body.decode("utf-8", "replace")  # the verdict cuts it, and says so
    return Verdict(status, f"{title}: {exchange.said} Output: {text}")


def _request(method: str, url: URL, headers: dict[str, str], body: bytes) -> bytes:
    if not _TOKEN.fullmatch(method):
        raise NotSent(f"{method!r} is not a method")
    host = url.raw_host or ""
    authority = f"[{host}]" if ":" in host else host
    if not url.is_default_port():
        authority += f":{url.port}"
    own = {
        "host": f"Host: {authority}",
        "user-agent": f"User-Agent: {USER_AGENT}",
        "accept": "Accept: */*",
        "accept-encoding": "Accept-Encoding: identity",
        "connection": "Connection: close",
    }
    if body or method in ("POST", "PUT", "PATCH"):
        own["content-length"] = f"Content-Length: {len(body)}"
    if url.user is not None:
        secret = b64encode(f"{url.user}:{url.password or ''}".encode()).decode()
        own["authorization"] = f"Authorization: Basic {secret}"
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or any(char in value for char in "\r\n\0"):
            raise NotSent(f"{name!r} is not a header that can be sent")
        if name.lower() not in ("connection", "content-length", "transfer-encoding"):  # framing is not the check's
            own[name.lower()] = f"{name}: {value}"
    head = "\r\n".join([f"{method} {url.raw_path_qs or '/'} HTTP/1.1", *own.values(), "\r\n"])
    return head.encode("utf-8", "surrogateescape") + body


class _Exchange(asyncio.Protocol):
    """A request and its answer on a connection of their own; `done` when there is enough of it."""

    def __init__(self, request: bytes, without_body: bool, body_bytes_max: int, progress: list[str]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.said = ""  # status and reason
        self.location = ""
        self.body = bytearray()
        self._request = request
        self._without_body = without_body
        self._body_bytes_max = body_bytes_max
        self._progress = progress
        self._parser = httptools.HttpResponseParser(self)
        self._reason = b""
        self._framed = False  # it says how long its body is; else the end of the connection does
        self._heard = False
        self._head_bytes = 0

    # --- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.WriteTransport", transport).write(self._request)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        if self.done.done():
            return
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(f"{self.said}, which was not asked for")
        except httptools.HttpParserError as error:
            self._fail(f"not an HTTP answer: {error}")
        if not self.said:
            self._grow_head(len(data))  # more than its lines so far, so that an endless line is noticed too

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._fail(f"{type(exc).__name__}: {exc}")
        elif not self._heard:
            self._fail("closed without an answer")
        elif self.said and not self._framed:
            self._enough()
        else:
            self._fail("the answer is cut short or malformed")

    # --- what the parser calls

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif name == b"location":
            self.location = value.decode("utf-8", "replace")
        self._grow_head(len(name) + len(value) + 4)  # with colon, space and line end

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 and status != 101:  # an interim answer: the real one follows
            self._reason, self._framed, self.location = b"", False, ""
            return
        self.status = status
        self.said = f"{status} {self._reason.decode('utf-8', 'replace')}".rstrip()
        self._progress.append(f"{self._progress[-1]}: {self.said}, but its body")
        if self._without_body or status in (204, 304):
            self._enough()

    def on_body(self, body: bytes) -> None:
        # One byte more than fits, so that the verdict shows where it was cut.
        self.body += body[: self._body_bytes_max + 1 - len(self.body)]
        if len(self.body) > self._body_bytes_max:
            self._enough()

    def on_message_complete(self) -> None:
        if self.said:
            self._enough()

    def _grow_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            self._fail(f"its head is longer than {HEAD_BYTES_MAX} bytes")

    def _enough(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(BadAnswer(why))
