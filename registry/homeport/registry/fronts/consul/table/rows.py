"""How a row is written: the parameters that many share, and a builder for each sort of endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from homeport.registry.fronts.consul.answers import Answer
from homeport.registry.fronts.consul.calls import Call, Endpoint, Parameter

View = Callable[[Call], Answer | Awaitable[Answer]]

# --- parameters that many rows share ----------------------------------------------------------------------------

EVERY: Final = (
    Parameter("pretty", "flag"),
    Parameter("token", "text"),
    Parameter("dc", "text", "differs", "there is one datacenter, dc1; another is a 500, as in Consul"),
    Parameter("ns", "text", "refused", "there are no namespaces"),
    Parameter("partition", "text", "refused", "there are no partitions"),
)
READ: Final = (
    Parameter("stale", "flag", "supported", "answers are never stale"),
    Parameter("consistent", "flag"),
    Parameter("cached", "flag", "supported", "answers are never older than without it"),
    Parameter("peer", "text", "refused", "there are no cluster peerings"),
)
BLOCKING: Final = (
    Parameter("index", "number"),
    Parameter("hash", "text", "supported", "everywhere; the answer then has X-Consul-ContentHash"),
    Parameter("wait", "duration", "supported", "5m by default, at most 10m, and up to a sixteenth more"),
)
NOTE: Final = (Parameter("note", "text", "supported", "4 KB are kept"),)
FILTER: Final = Parameter("filter", "filter")
NODE_META: Final = Parameter("node-meta", "texts", "supported", "key:value; given several times, all must be there")
NEAR: Final = Parameter(
    "near",
    "text",
    "differs",
    "what is on that node comes first (_agent: this one, _ip: yours); no distances are known",
)
TAGS: Final = Parameter("tag", "texts", "supported", "given several times, all must be there")
MERGE: Final = Parameter("merge-central-config", "flag", "supported", "there is no central configuration to merge")
PEER: Final = Parameter("peer", "text", "supported", "there are no cluster peerings, so nothing comes from a peer")
CHOSEN: Final = (FILTER, NEAR, NODE_META, PEER)
FORMAT: Final = Parameter("format", "text", "supported", "text: the status as a word, nothing else")

ELSE: Final = "this registry has none of that name; docs/consul.md lists those it has"  # of all else under a beginning


def get(path: str, summary: str, view: Callable[[Call], Answer], *parameters: Parameter, **more: object) -> Endpoint:
    """A read that can block when it has a resource."""
    shared = EVERY + READ + (BLOCKING if "resource" in more else ())
    if PEER in parameters:
        shared = tuple(one for one in shared if one.name != PEER.name)
    row = Endpoint(method="GET", path=path, summary=summary, view=view, parameters=(*parameters, *shared), read=True)
    return msgspec.structs.replace(row, **more)


def put(path: str, summary: str, **more: object) -> Endpoint:
    given = more.pop("parameters", ())
    assert isinstance(given, tuple)
    row = Endpoint(method="PUT", path=path, summary=summary, parameters=(*given, *EVERY), access="write")
    return msgspec.structs.replace(row, **more)


def later(path: str, note: str) -> Endpoint:
    """Consul has it; here it is answered 501 and the reason."""
    return Endpoint(method="*", path=path, summary="", support="refused", note=note, statuses=(501,))


def own(path: str, summary: str, view: View, *parameters: Parameter, **more: object) -> Endpoint:
    """A read of what the agent itself knows: it has no index and cannot block."""
    row = Endpoint(method="GET", path=path, summary=summary, view=view, parameters=(*parameters, *EVERY))
    return msgspec.structs.replace(row, **more)


def no(method: str, path: str, note: str) -> Endpoint:
    """Consul has it; here it can have no meaning, and is answered 501 and the reason."""
    return Endpoint(method=method, path=path, summary="", support="refused", note=note, statuses=(501,), access="write")


def no_acls(path: str) -> Endpoint:
    """Part of the ACL system: refused in the words and with the status by which clients know that it is off."""
    note = "ACL support disabled; a registry has one token or none"
    return Endpoint(method="*", path=path, summary="", support="refused", note=note, statuses=(401,))
