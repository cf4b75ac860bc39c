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
_NO_PASSWORD: Final = ""  # for an encrypted key to be an error; else OpenSSL would ask a terminal, and everything wait
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
        context.load_cert_chain(self.cert, self.key, _NO_PASSWORD)
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            # Who resumes a session is not asked for a certificate again, however many authorities have gone since.
            context.num_tickets = 0
            context.options |= ssl.OP_NO_TICKET
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
        context.load_cert_chain(settings.cert, settings.key, _NO_PASSWORD)
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
    """A context that is what its files say, certificate, key and authorities, also after they have changed.

    New connections are met, or made, by the files as they are now; those that are open stay as they are. A context
    cannot forget an authority, so a change makes a new one. A server's is fixed when it begins to listen: there,
    `context` stays the door, and hands each client that says hello to the newest.
    """

    __slots__ = ("_look_at_s", "_newest", "_seen", "_settings", "context")

    def __init__(self, settings: ServerTls | UpstreamTls) -> None:
        self._settings = settings
        self._seen = self._stamps()
        self._look_at_s = 0.0
        self.context = self._newest = self._fresh()
        if isinstance(settings, ServerTls):
            self.context.sni_callback = self._hand_on

    def sweep(self, now: float) -> None:
        """Look at the files when it is time, and take what they hold for new connections."""
        if now < self._look_at_s:
            return
        self._look_at_s = now + LOOK_S
        if self._stamps() != self._seen:
            self.read()

    def read(self) -> None:
        """Take what the files hold now; if that cannot be used, what they held before goes on."""
        self._seen = self._stamps()  # what cannot be used is not tried again before it changes again
        try:
            self._newest = self._fresh()
        except OSError as error:
            _log.warning("%s: changed, and cannot be used: %s", self._names, error)
            return
        if isinstance(self._settings, UpstreamTls):
            self.context = self._newest
        _log.info("%s: read again", self._names)

    def _hand_on(self, tls: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        tls.context = self._newest

    def _fresh(self) -> ssl.SSLContext:
        settings = self._settings
        return settings.context() if isinstance(settings, ServerTls) else upstream_context(settings)

    @property
    def _files(self) -> list[Path]:
        settings = self._settings
        authority = settings.client_ca if isinstance(settings, ServerTls) else settings.ca
        return [Path(path) for path in (settings.cert, settings.key, authority) if path is not None]

    @property
    def _names(self) -> str:
        return ", ".join(map(str, self._files))

    def _stamps(self) -> list[tuple[int, int, int]]:
        stamps = []
        for path in self._files:
            try:
                found = path.stat()
            except OSError:
                stamps.append((0, 0, 0))
            else:
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
        return stamps
