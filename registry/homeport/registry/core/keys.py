"""The layout of the store's keys: where each view keeps what.

    s/<service>/<node>/<id>    one instance              i/<node>/<id>          the service that id belongs to
    h/<node>/<id>/<check>      one check's status        c/<node>               a node; its checks: h/<node>//<check>
    k/<key>                    a user's key, raw         m/<key>                what only some fronts know of it
    n/<session>                a session                 d/<key>                a lock delay
    l/<lease>                  a lease                   e/<name>/<time>        an event
    q/<query>                  a prepared query; its name: q/name/<name>, or q/template/<name>

Segments are percent-encoded (`%`, `/`, bytes up to 0x20 and from 0x7F), so that a slash in a name is not a level.
"""

from __future__ import annotations

import re
from typing import Final

from homeport.client.core.txn import prefix_end as prefix_end  # both sides of a connection need it

LEASES: Final = b"l/"
INSTANCES: Final = b"s/"
IDS: Final = b"i/"
CHECKS: Final = b"h/"
NODES: Final = b"c/"
USER: Final = b"k/"
USER_DETAILS: Final = b"m/"
SESSIONS: Final = b"n/"
DELAYS: Final = b"d/"
EVENTS: Final = b"e/"
QUERIES: Final = b"q/"

_UNSAFE: Final = re.compile(rb"[%/\x00-\x20\x7f-\xff]")
_ESCAPED: Final = re.compile(rb"%([0-9A-F]{2})")


def escape(text: str) -> bytes:
    """One name as a key segment."""
    segment = text.encode()
    if _UNSAFE.search(segment) is None:
        return segment
    return _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], segment)


def unescape(segment: bytes) -> str:
    """The name that `escape` wrote."""
    if b"%" in segment:
        segment = _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), segment)
    return segment.decode()


def instance(service: str, node: str, id: str) -> bytes:  # noqa: A002 - the field's name everywhere else
    return b"s/%b/%b/%b" % (escape(service), escape(node), escape(id))


def id_of(node: str, id: str) -> bytes:  # noqa: A002
    return b"i/%b/%b" % (escape(node), escape(id))


def check(node: str, id: str, name: str) -> bytes:  # noqa: A002
    return b"h/%b/%b/%b" % (escape(node), escape(id), escape(name))


def checks_of(node: str, id: str) -> bytes:  # noqa: A002
    """The prefix of all of an instance's statuses, or with an empty id of its node's own."""
    return b"h/%b/%b/" % (escape(node), escape(id))


def checks_on(node: str) -> bytes:
    """The prefix of all statuses on a node, its own included."""
    return b"h/%b/" % escape(node)


def ids_on(node: str) -> bytes:
    """The prefix of all `id_of` of a node."""
    return b"i/%b/" % escape(node)


def registered(service: str, node: str, id: str) -> bytes:  # noqa: A002
    """Where a registration stands: that of an instance, or with an empty id that of the node itself."""
    return instance(service, node, id) if id else _node(node)


def lease(number: int) -> bytes:
    return b"l/%016x" % number


def lease_number(key: bytes) -> int:
    return int(key.removeprefix(LEASES), 16)


def node(name: str) -> bytes:
    return b"c/%b" % escape(name)


_node: Final = node  # for those above, whose argument has that name


def session(id: str) -> bytes:  # noqa: A002
    return b"n/%b" % escape(id)


def query(id: str) -> bytes:  # noqa: A002
    return b"q/%b" % escape(id)


def query_name(name: str) -> bytes:
    """Which query has a name."""
    return b"q/name/%b" % escape(name)


def query_template(name: str) -> bytes:
    """Which template answers to the names that start like this."""
    return b"q/template/%b" % escape(name)


def event(name: str, time: int) -> bytes:
    return b"e/%b/%016x" % (escape(name), time)


def events_of(name: str) -> bytes:
    """The prefix of all events of a name."""
    return b"e/%b/" % escape(name)


def split(key: bytes) -> list[str]:
    """The names in a key of the form `x/<name>/<name>...`, without the leading letter."""
    return [unescape(segment) for segment in key.split(b"/")[1:]]
