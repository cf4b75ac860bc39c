"""Looks at one target once: `Prober.probe` turns a check into a verdict, whatever happens on the way.

Every look opens a connection of its own and closes it: a kept one says nothing of whether new ones are still taken, and
ten thousand targets would hold as many descriptors. A paused process is still connected to, but answers nothing. (Its
kernel goes on accepting, so a `tcp` check cannot notice a pause; an `http` or `grpc` check does.) One deadline covers
name lookup, connecting, TLS, redirects and reading.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from yarl import URL

from homeport.client.core.model import Check, Status
from homeport.registry.core.health import Verdict
from homeport.registry.health import grpc_probe, http_probe
from homeport.registry.health.dialing import ConnectFailed, Dialer, host_and_port
from homeport.registry.health.http_probe import BadAnswer, NotSent

log = logging.getLogger("homeport.registry.health")
log.addHandler(logging.NullHandler())

# What a `call` check awaits: a status, one with words for it, or None for passing; raising is critical.
Call = Callable[[], Awaitable[Status | tuple[Status, str] | None]]
_NONE_PROVIDED: Final[Mapping[str, Call]] = {}
_RESULTS: Final = ("passing", "warning", "critical")


class Prober:
    """Runs checks from one event loop; close it when no probe is under way any more.

    Args:
        calls: the coroutines of `call` checks by name; may change at any time.
    """

    def __init__(self, calls: Mapping[str, Call] = _NONE_PROVIDED) -> None:
        self._calls = calls
        self._dialer = Dialer()

    async def probe(self, check: Check) -> Verdict:
        """Run a check once, within its `timeout_s`. Raises nothing; cancelling it closes what it opened."""
        assert check.kind not in ("ttl", "alias"), "these are told to us, not run by us"
        progress = [_title(check)]  # how far it got, for the words when time runs out
        deadline = asyncio.timeout(check.timeout_s)
        try:
            async with deadline:
                return await self._look(check, progress)
        except Exception as error:
            if deadline.expired() and isinstance(error, TimeoutError):
                return Verdict("critical", f"{progress[-1]}: timed out after {check.timeout_s:g} s")
            if check.kind != "call" and not isinstance(error, (OSError, ValueError, BadAnswer)):
                log.exception("%s failed in an unforeseen way", progress[0])
            refused = isinstance(error, ConnectFailed) and error.refused and _is_first(check, error)
            return Verdict("critical", f"{progress[0]}: {_in_words(error)}", refused=refused)

    async def close(self) -> None:
        """Forget what is remembered between probes. Idempotent."""
        self._dialer.close()

    async def _look(self, check: Check, progress: list[str]) -> Verdict:
        match check.kind:
            case "http":
                try:
                    url = URL(check.url)
                except ValueError as error:
                    raise NotSent(f"not a URL: {error}") from None
                progress[0] = f"HTTP {check.method} {url.with_user(None) if url.host else url}"  # a password stays ours
                if not url.host:
                    raise NotSent("not a URL: it has no host")
                return await http_probe.look(self._dialer, check, url, progress)
            case "grpc":
                return await grpc_probe.ask(self._dialer, check, progress[0])
            case "call":
                return await self._call(check, progress[0])
        host, port = host_and_port(check.address)
        tls = self._dialer.tls(check.tls_verify) if check.tls else None
        transport, _ = await self._dialer.dial(asyncio.Protocol, host, port, tls, check.tls_name)
        transport.abort() if check.tls else transport.close()
        return Verdict("passing", f"{progress[0]}: connected")

    async def _call(self, check: Check, title: str) -> Verdict:
        call = self._calls.get(check.call)
        if call is None:
            return Verdict("critical", f"{title}: nothing was provided under this name in the registry's process")
        result = await call()
        status, output = result if isinstance(result, tuple) else (result or "passing", "")
        if status not in _RESULTS:
            return Verdict("critical", f"{title}: returned {status!r}; allowed: None, {', '.join(_RESULTS)}")
        return Verdict(status, f"{title}: {output or status}")


def _title(check: Check) -> str:
    match check.kind:
        case "tcp":
            return f"{'TLS' if check.tls else 'TCP'} connect {check.address}"
        case "grpc":
            return f"gRPC {check.address}{f'/{check.grpc_service}' if check.grpc_service else ''}"
        case "call":
            return f"call {check.call}"
    return f"HTTP {check.method} {check.url}"


def _is_first(check: Check, error: ConnectFailed) -> bool:
    """Whether it was the target itself, and not one that it redirected to."""
    if check.kind == "http":
        url = URL(check.url)
        return (error.host, error.port) == (url.raw_host, url.port)
    return True


def _in_words(error: BaseException) -> str:
    match error:
        case ConnectFailed():
            return f"{_in_words(error.cause)} ({error.host}:{error.port})"  # after a redirect, where is news
        case ConnectionRefusedError():
            return "connection refused"
        case socket.gaierror():
            return "the name was not found"
        case ssl.SSLCertVerificationError():
            return f"the certificate is not accepted: {error.verify_message}"
        case BadAnswer() | NotSent():
            return str(error)
    return f"{type(error).__name__}: {error}"
