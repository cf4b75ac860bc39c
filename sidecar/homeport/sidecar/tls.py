"""TLS on either side of the proxy: how clients are met, how upstreams are, and certificates that change while running.

Certificates are short-lived where they are automatic, so their files are looked at again and again. What they hold is
tried in a context of its own first: a half-written pair of files never replaces one that works.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from homeport.sidecar.core.settings import UpstreamTls

_log = logging.getLogger("homeport.sidecar")

_ALPN: Final = ["http/1.1"]
LOOK_S: Final = 1.0  # between two looks at the files: two calls of stat, and nobody waits a second for a certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """How clients are met: our certificate, its key, and who may call (`client_ca`; None: anybody)."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """A new context.

        Raises:
            OSError: a file cannot be read, or does not hold what it must.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(_ALPN)
        context.load_cert_chain(self.cert, self.key)
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def upstream_context(settings: UpstreamTls) -> ssl.SSLContext:
    """A new context for connections to a service.

    Raises:
        OSError: a file cannot be read, or does not hold what it must.
    """
    context = ssl.create_default_context(cafile=settings.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_ALPN)
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.cert is not None:
        context.load_cert_chain(settings.cert, settings.key)
    return context


def said_goodbye(tls: ssl.SSLObject) -> bool:
    """Whether the other end has closed TLS itself; if not, somebody in between may have cut off what it said."""
    try:
        return not tls.read(1)
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLError:
        return False


class Renewed:
    """A context whose certificate is that of its files, also after they have changed."""

    __slots__ = ("_look_at_s", "_seen", "_settings", "context")

    def __init__(self, settings: ServerTls | UpstreamTls) -> None:
        self._settings = settings
        self._seen = self._stamps()
        self._look_at_s = 0.0
        self.context = self._fresh()

    def sweep(self, now: float) -> None:
        """Look at the files when it is time, and take what they hold for new connections."""
        if now < self._look_at_s:
            return
        self._look_at_s = now + LOOK_S
        seen = self._stamps()
        if seen == self._seen:
            return
        self._seen = seen  # what cannot be used is not tried again before it changes again
        try:
            self._fresh()
            if self._settings.cert is not None:
                self.context.load_cert_chain(self._settings.cert, self._settings.key)
        except OSError as error:
            _log.warning("the changed certificate %s cannot be used: %s", self._settings.cert, error)
        else:
            _log.info("certificate %s: changed", self._settings.cert)

    def _fresh(self) -> ssl.SSLContext:
        settings = self._settings
        return settings.context() if isinstance(settings, ServerTls) else upstream_context(settings)

    def _stamps(self) -> list[tuple[int, int, int]]:
        stamps = []
        for path in (self._settings.cert, self._settings.key):
            if path is not None:
                try:
                    found = Path(path).stat()
                except OSError:
                    stamps.append((0, 0, 0))
                else:
                    stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
        return stamps
