"""Which requests belong together: the key that a hashing policy sends to one endpoint."""

from __future__ import annotations

from collections.abc import Iterable

from homeport.client.core.balancing import HashOn
from homeport.client.core.errors import InvalidArgument
from homeport.sidecar.core import headers


class Affinity:
    """Reads keys out of requests.

    Raises:
        InvalidArgument: no request could have such a header or cookie.
    """

    __slots__ = ("_cookie", "_header")

    def __init__(self, hash_on: HashOn) -> None:
        for name, allowed in ((hash_on.header, headers.passes), (hash_on.cookie, headers.is_token)):
            if name and not allowed(name):
                raise InvalidArgument(
                    f"hash_on cannot be {name[:128]!r}; allowed: a cookie's name, or a header that passes the proxy as "
                    "it came",
                    field="hash_on",
                )
        header = "cookie" if hash_on.cookie else hash_on.header
        self._header = header.lower().encode() + b":" if header else b""
        self._cookie = hash_on.cookie.encode()

    def key(self, lines: Iterable[bytes], peer: bytes) -> bytes | None:
        """The key of a request from `peer` with these header lines, None if it has none."""
        wanted = self._header
        if not wanted:
            return peer
        size = len(wanted)
        for line in lines:
            if line[:size].lower() != wanted:
                continue
            value = line[size:].strip(b" \t")
            if not self._cookie:
                return value
            for pair in value.split(b";"):
                name, _, content = pair.partition(b"=")
                if name.strip() == self._cookie:
                    return content.strip()
        return None
