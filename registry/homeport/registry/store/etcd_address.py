"""Where an etcd cluster is, as one word: `etcd://[user@]host:port,host:port[/prefix][?option=value&...]`.

Options are paths of files: `ca`, `cert` and `key` (PEM; any of them makes connections TLS), and `password`.
"""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import parse_qsl, unquote

import msgspec

from homeport.client.core.errors import InvalidArgument
from homeport.client.core.model import is_port
from homeport.registry.store.etcd_cluster import EtcdCluster

SCHEME: Final = "etcd://"
PREFIX_DEFAULT: Final = "homeport"
_OPTIONS: Final = ("ca", "cert", "key", "password")
_FORM: Final = "etcd://[user@]host:port,host:port[/prefix][?ca=FILE&cert=FILE&key=FILE&password=FILE]"


class EtcdAddress(msgspec.Struct, frozen=True):
    """What such an address says, its files read."""

    endpoints: tuple[str, ...]
    prefix: bytes
    user: str
    password: str
    ca: bytes | None
    cert: bytes | None
    key: bytes | None


def parse(address: str) -> EtcdAddress:
    """Take an address apart and read its files.

    Raises:
        InvalidArgument: it is malformed, or a file cannot be read; the message says what is allowed.
    """
    if not address.startswith(SCHEME):
        raise _malformed(address)
    rest, _, options = address.removeprefix(SCHEME).partition("?")
    where, _, prefix = rest.partition("/")
    user, _, hosts = where.rpartition("@")
    endpoints = tuple(hosts.split(","))
    for endpoint in endpoints:
        host, colon, port = endpoint.rpartition(":")
        if not (colon and host and is_port(port)):
            raise _malformed(address)
    files: dict[str, bytes] = {}
    for name, path in parse_qsl(options, keep_blank_values=True):
        if name not in _OPTIONS:
            raise InvalidArgument(f"the store's option {name!r}; allowed: {', '.join(_OPTIONS)}", field="store")
        try:
            with open(os.path.expanduser(path), "rb") as file:
                files[name] = file.read()
        except OSError as error:
            raise InvalidArgument(f"the store's {name} file {path}: {error.strerror}", field="store") from None
    if bool(user) != ("password" in files) or ("key" in files) != ("cert" in files):
        raise InvalidArgument("a user goes with a password file, a cert with its key", field="store")
    return EtcdAddress(
        endpoints,
        b"/%b/" % unquote(prefix.strip("/") or PREFIX_DEFAULT).encode(),
        unquote(user),
        files.get("password", b"").decode().strip(),
        files.get("ca"),
        files.get("cert"),
        files.get("key"),
    )


def link(at: EtcdAddress) -> EtcdCluster:
    """A way to that cluster; it connects when it is used.

    Raises:
        InvalidArgument: what speaks to etcd is not installed.
    """
    try:
        from homeport.registry.store.etcd_link import EtcdLink
    except ImportError as error:
        raise InvalidArgument(f"etcd needs `pip install homeport[etcd]` ({error})", field="store") from None
    return EtcdLink(at.endpoints, ca=at.ca, cert=at.cert, key=at.key, user=at.user, password=at.password)


def _malformed(address: str) -> InvalidArgument:
    return InvalidArgument(f"store {address!r}; allowed: {_FORM}", field="store")
