"""Looks at one target once: `Prober.probe` turns a check into a verdict, whatever happens on the way.

Every look opens a connection of its own and closes it: a paused process is still connected to, but answers nothing.
(Its kernel goes on accepting, so a `tcp` check cannot notice a pause; an `http` check does.) One deadline covers name
lookup, connecting, redirects and reading. Only the body's first 4 KiB are read, undecoded, so no answer can be too big.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

import aiohttp
from yarl import URL

from homeport.client.core.model import OUTPUT_BYTES_MAX, Check, Status
from homeport.registry.core.health import Verdict

REDIRECTS_MAX: Final = 10  # as Go's client follows for Consul; the next one is a failure
DNS_CACHE_S: Final = 1  # merges the lookups of checks that run together, and never outlives a check's interval by much
TOO_MANY_REQUESTS: Final = 429  # the one answer that is a warning, as in Consul
USER_AGENT: Final = f"homeport-health/{version('homeport')}"

log = logging.getLogger("homeport.registry.health")
log.addHandler(logging.NullHandler())


class Prober:
    """Runs `http` and `tcp` checks from one event loop; close it when no probe is under way any more.

    Args:
        connector_factory: makes the connector of all `http` checks, on first use; it should have `force_close=True`
            and no limit. None: TCP, with certificates checked.
    """

    def __init__(self, connector_factory: Callable[[], aiohttp.BaseConnector] | None = None) -> None:
        self._connector_factory = connector_factory or _tcp_connector
        self._session: aiohttp.ClientSession | None = None

    async def probe(self, check: Check) -> Verdict:
        """Run a check once, within its `timeout_s`. Raises nothing; cancelling it closes what it opened."""
        assert check.kind != "ttl", "a ttl check is reported to us, not run by us"
        url = URL()
        if check.kind == "tcp":
            title = f"TCP connect {check.address}"
        else:
            title = f"{check.kind.upper()} {check.method} {check.url}"
        progress = [title]  # how far it got, for the words when time runs out
        deadline = asyncio.timeout(check.timeout_s)
        try:
            async with deadline:
                if check.kind == "tcp":
                    await _connect(check.address)
                    return Verdict("passing", f"{title}: connected")
                url = URL(check.url)
                if not url.host:
                    raise aiohttp.InvalidURL(check.url)
                progress[0] = title = f"HTTP {check.method} {url.with_user(None)}"  # no password is shown to everyone
                return await self._get(check, url, progress)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if deadline.expired():
                return Verdict("critical", f"{progress[-1]}: timed out after {check.timeout_s:g} s")
            return Verdict("critical", f"{title}: {_in_words(error)}", refused=_is_refused(error, url))
        except Exception as error:
            log.exception("%s failed in an unforeseen way", title)
            return Verdict("critical", f"{title}: {type(error).__name__}: {error}")

    async def close(self) -> None:
        """Close the connector; a later probe would open another. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _get(self, check: Check, url: URL, progress: list[str]) -> Verdict:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._connector_factory(),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Connection": "close"},
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # the check's deadline is the only one
                trust_env=False,
            )
        response = await self._session.request(
            check.method, url, headers=check.headers, max_redirects=REDIRECTS_MAX, allow_redirects=True
        )
        try:
            progress.append(f"{progress[-1]}: {response.status} {response.reason}, but its body")
            body = bytearray()
            while len(body) <= OUTPUT_BYTES_MAX:  # one byte more than fits, so that the verdict shows where it was cut
                chunk = await response.content.read(OUTPUT_BYTES_MAX + 1 - len(body))
                if not chunk:
                    break
                body += chunk
        finally:
            response.close()
        status: Status = "critical"
        if 200 <= response.status < 300:
            status = "passing"
        elif response.status == TOO_MANY_REQUESTS:
            status = "warning"
        output = f"{progress[0]}: {response.status} {response.reason} Output: {body.decode('utf-8', 'replace')}"
        return Verdict(status, output)


def _tcp_connector() -> aiohttp.BaseConnector:
    # No limit: how many probes run at once is the scheduler's to say.
    return aiohttp.TCPConnector(force_close=True, limit=0, ttl_dns_cache=DNS_CACHE_S)


async def _connect(address: str) -> None:
    """Connect to "host:port" and close.

    Raises:
        OSError: from the last address tried; `ConnectionRefusedError` only if all that the name stands for refused.
    """
    host, _, port_text = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    port = int(port_text)
    loop = asyncio.get_running_loop()
    try:
        ipaddress.ip_address(host)
        hosts = [host]
    except ValueError:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        hosts = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    failure: OSError | None = None
    for each in hosts:  # one by one: asyncio's own loop over them melts several errors into a text
        try:
            transport, _ = await loop.create_connection(asyncio.Protocol, each, port)
        except OSError as error:
            if failure is None or not isinstance(error, ConnectionRefusedError):
                failure = error
        else:
            transport.close()
            return
    raise failure or OSError(f"{host} has no address")


def _is_refused(error: Exception, url: URL) -> bool:
    """Whether the target itself refused, and not one that it redirected to."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.errno == errno.ECONNREFUSED and (error.host, error.port) == (url.raw_host, url.port)
    return isinstance(error, ConnectionRefusedError)


def _in_words(error: Exception) -> str:
    where = ""
    if isinstance(error, aiohttp.ClientConnectorError):  # says where, which after a redirect is news
        where = f" ({error.host}:{error.port})"
        error = error.os_error
    match error:
        case ConnectionRefusedError():
            return f"connection refused{where}"
        case socket.gaierror():
            return f"the name was not found{where}"
        case aiohttp.ServerDisconnectedError():
            return "closed without an answer"
        case aiohttp.TooManyRedirects():
            return f"more than {REDIRECTS_MAX} redirects"
        case aiohttp.ClientResponseError():
            return f"not an HTTP answer: {' '.join(error.message.split())}"  # the parser draws arrows over lines
        case aiohttp.ClientPayloadError():
            return "the answer's body is cut short or malformed"
        case aiohttp.InvalidURL():
            return f"not a URL: {error}"
    return f"{type(error).__name__}: {error}{where}"
