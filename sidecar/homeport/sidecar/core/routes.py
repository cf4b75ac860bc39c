"""Where a request goes: to a name of the catalogue, to a host that was let through by name, or nowhere.

In this order: an absolute-form target (`GET http://orders/x`, what a client with HTTP_PROXY sends), the header
`x-homeport-service`, the Host. A target is only ever a name: `orders` or `orders.service.homeport`, with or without a
port; CONNECT's too. Addresses and other hosts are refused, so that this never is an open proxy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

SUFFIX: Final = b".service.homeport"
_NAME: Final = re.compile(rb"[a-z0-9_~][a-z0-9_~.-]{0,511}")
_ABSOLUTE: Final = re.compile(rb"http://([^/?#]*)([^#]*)", re.IGNORECASE)
_AUTHORITY: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_NO_NAMES: Final = frozenset({b"localhost", b"localhost.localdomain"})  # looks like a name, means this machine

_ALLOW: Final = b"Allow: GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS, CONNECT"

HELP: Final = (
    "This is a Homeport sidecar; it forwards only to services of its registry. Call http://<service>/, or set the "
    "header x-homeport-service. To reach other hosts directly, name them in NO_PROXY; to let them through, start the "
    "sidecar with --passthrough HOST."
)


class Refusal(Exception):
    """The sidecar answers by itself: an HTTP status, a response flag, and a sentence that says what happened."""

    def __init__(self, status: int, flag: str, text: str, lines: tuple[bytes, ...] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.flag = flag
        self.text = text
        self.lines = lines  # more of the answer's head


class Passed(str):
    """A `host:port` outside the registry that was let through by name."""

    __slots__ = ()


def unknown(host: bytes | str) -> Refusal:
    """Nothing is known under this name."""
    name = host.decode("latin-1") if isinstance(host, bytes) else host
    return Refusal(404, "NR", f"{name[:200]!r} is not a service of the registry. {HELP}")


def last_hop(method: bytes) -> Refusal:
    """The answer to an OPTIONS or TRACE that asks to be forwarded no further (RFC 9110 7.6.2)."""
    if method == b"TRACE":
        return Refusal(405, "", "this is as far as it may go, and a sidecar does not reflect requests", (_ALLOW,))
    return Refusal(200, "", "this is as far as it may go: these methods are passed on", (_ALLOW,))


def split_absolute(target: bytes, *, method: bytes = b"GET") -> tuple[bytes, bytes]:
    """Split `http://authority/path?query` into authority and the target that an origin server is asked for.

    That of an OPTIONS with neither path nor query is `*`, the server as a whole (RFC 9112 3.2.4).

    Raises:
        Refusal: it is not an http URI.
    """
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise Refusal(404, "NR", f"only http:// targets can be forwarded. {HELP}")
    host, path = match.groups()
    if not path and method == b"OPTIONS":
        return authority(host), b"*"
    return authority(host), path if path.startswith(b"/") else b"/" + path


def split_connect(target: bytes) -> bytes:
    """The authority that a CONNECT asks for.

    Raises:
        Refusal: it is not host:port.
    """
    if not target.rpartition(b":")[2].isdigit():
        raise Refusal(400, "NR", "CONNECT needs host:port")
    return authority(target)


def authority(text: bytes) -> bytes:
    """What may stand in a Host.

    Raises:
        Refusal: it may not.
    """
    if _AUTHORITY.fullmatch(text) is None:
        raise Refusal(400, "NR", "the authority must be host or host:port, without credentials")
    return text


def service_of(name: bytes) -> str:
    """The service named by an `x-homeport-service` header.

    Raises:
        Refusal: it cannot be a service's name.
    """
    try:
        service = name.strip().decode()
    except UnicodeDecodeError:
        raise unknown(name) from None
    if not 0 < len(service) <= 512:
        raise unknown(name)
    return service


class Hosts:
    """Reads Host fields, with the names that are allowed though the registry does not know them."""

    __slots__ = ("_passthrough", "_static")

    def __init__(self, static: Iterable[str] = (), passthrough: Iterable[str] = ()) -> None:
        self._static = frozenset(name.lower().encode() for name in static)
        self._passthrough = frozenset(name.lower().encode() for name in passthrough)

    def destination(self, host: bytes) -> str | Passed:
        """The service, or the `host:port` to pass to.

        Raises:
            Refusal: neither.
        """
        authority = host.strip().lower()
        name, colon, port = authority.rpartition(b":")
        if not colon or authority.endswith(b"]"):
            name, port = authority, b""
        name = name.removesuffix(b".")  # the root, as in a fully qualified name
        if authority in self._passthrough or name in self._passthrough:
            number = int(port) if port.isdigit() else 80
            if not 0 < number < 65_536:
                raise unknown(host)
            return Passed(f"{name.decode()}:{number}")
        if name in self._static:
            return name.decode()
        service = name.removesuffix(SUFFIX)
        if service == name and b"." in name:  # a host of the outside world, or an IPv4 address
            raise unknown(host)
        if _NAME.fullmatch(service) is None or service in _NO_NAMES:
            raise unknown(host)
        return service.decode()
