"""Questions as they come: read by hand where they are plain, with dnspython where something follows the question.

A question's name stands first in the message, so it has nothing to be compressed against: it is a plain row of labels,
or the message is malformed.
"""

from __future__ import annotations

from typing import Final

import dns.flags
import dns.message
import msgspec

HEADER_BYTES: Final = 12
NAME_BYTES_MAX: Final = 255  # RFC 1035, 2.3.4
UDP_BYTES_PLAIN: Final = 512  # what an asker takes who says nothing (RFC 1035, 2.3.4)
COUNTS_PLAIN: Final = b"\x00\x01\x00\x00\x00\x00\x00\x00"  # one question
COUNTS_EDNS: Final = b"\x00\x01\x00\x00\x00\x00\x00\x01"  # and an OPT record
OPT_BYTES: Final = 11  # one without options
OPT_START: Final = b"\x00\x00\x29"  # the root's name and the type

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, NOTAUTH = 0, 1, 2, 3, 4, 5, 9
BADVERS: Final = 16
CLASS_IN: Final = 1


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """One well-formed question. `labels` are lower-case and without the root; `wire` is the question as it was sent."""

    id: bytes
    rd: bool
    cd: bool = False
    labels: tuple[bytes, ...]
    wire: bytes
    qtype: int
    qclass: int
    udp_bytes: int | None  # what its asker takes over UDP, None without EDNS
    do: bool = False


class Malformed(Exception):
    """It cannot be answered but with a code; what of the question could be read is returned with it."""

    def __init__(self, rcode: int, query: Query | None = None) -> None:
        super().__init__(rcode)
        self.rcode = rcode
        self.query = query


def read(data: bytes) -> Query | None:
    """Read a message; None if it must not be answered at all: it is an answer itself, or no message.

    Raises:
        Malformed: the code to answer with.
    """
    if len(data) < HEADER_BYTES or data[2] & 0x80:
        return None
    if data[2] & 0x78:
        raise Malformed(NOTIMP)
    if data[4:6] != b"\x00\x01":
        raise Malformed(FORMERR)
    labels, at = _labels(data)
    question_end = at + 4
    if len(data) < question_end:
        raise Malformed(FORMERR)
    query = Query(
        id=data[:2],
        rd=bool(data[2] & 1),
        cd=bool(data[3] & 0x10),
        labels=labels,
        wire=data[HEADER_BYTES:question_end],
        qtype=int.from_bytes(data[at : at + 2], "big"),
        qclass=int.from_bytes(data[at + 2 : question_end], "big"),
        udp_bytes=None,
    )
    rest = data[question_end:]
    if not rest and data[4:12] == COUNTS_PLAIN:
        return query
    if (
        len(rest) == OPT_BYTES
        and data[4:12] == COUNTS_EDNS
        and rest.startswith(OPT_START)
        and rest.endswith(b"\x00\x00")
    ):
        return _with_edns(query, rest[6], int.from_bytes(rest[3:5], "big"), bool(rest[7] & 0x80))
    return _with_more(query, data)


def _labels(data: bytes) -> tuple[tuple[bytes, ...], int]:
    """The labels of the question's name, and where it ends."""
    labels: list[bytes] = []
    at, end = HEADER_BYTES, len(data)
    while at < end:
        length = data[at]
        at += 1
        if not length:
            return tuple(labels), at
        if length > 63 or at + length - HEADER_BYTES >= NAME_BYTES_MAX:
            break
        labels.append(data[at : at + length].lower())
        at += length
    raise Malformed(FORMERR)


def _with_more(query: Query, data: bytes) -> Query:
    """The query with what follows the question: options, signatures, records that have no business there."""
    try:
        message = dns.message.from_wire(data)
    except dns.message.UnknownTSIGKey:
        raise Malformed(NOTAUTH, query) from None  # there are no keys
    except Exception:  # noqa: BLE001 - whatever a library makes of garbage, it is garbage
        raise Malformed(FORMERR, query) from None
    if message.edns < 0:
        return query
    return _with_edns(query, message.edns, message.payload, bool(message.ednsflags & dns.flags.DO))


def _with_edns(query: Query, version: int, udp_bytes: int, do: bool) -> Query:
    query = msgspec.structs.replace(query, udp_bytes=max(udp_bytes, UDP_BYTES_PLAIN), do=do)
    if version:
        raise Malformed(BADVERS, query)
    return query
