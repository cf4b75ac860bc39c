"""The operations of the registry: one typed request per method, one typed result per request.

Both transports share this table. In process, a request is handed over as it is; over a connection, `wire` turns it
into MessagePack-RPC: `method` is the class attribute, `params` an array that holds the request as one map. The same
page in prose, for other languages: docs/rpc.md.
"""

from __future__ import annotations

from typing import Any, Final

from homeport.client.core.messages.base import PROTOCOL_VERSION, Done, Hello, Notice, Ping, Pong, Request, Welcome
from homeport.client.core.messages.keys import (
    KvDelete,
    KvFound,
    KvGet,
    KvList,
    KvPage,
    KvPut,
    KvTxn,
    KvTxnDone,
    KvWritten,
    Leased,
    LeaseGrant,
    LeaseRevoke,
)
from homeport.client.core.messages.services import (
    Deregister,
    Explain,
    Explained,
    Register,
    Registered,
    Renew,
    Renewed,
    ReportCheck,
    Resolve,
    Resolved,
    ServiceList,
    Services,
    SetState,
    WaitApplied,
)
from homeport.client.core.messages.upkeep import (
    BackupChunk,
    BackupOpen,
    BackupOpened,
    BackupRead,
    RestoreCommit,
    RestoreWrite,
    Stats,
    StatsReport,
)
from homeport.client.core.messages.watches import Applied, CancelWatch, Event, KvEvents, Watching, WatchKv, WatchService

__all__ = [
    "NOTICES",
    "PROTOCOL_VERSION",
    "REQUESTS",
    "RESULTS",
    "Applied",
    "BackupChunk",
    "BackupOpen",
    "BackupOpened",
    "BackupRead",
    "CancelWatch",
    "Deregister",
    "Done",
    "Event",
    "Explain",
    "Explained",
    "Hello",
    "KvDelete",
    "KvEvents",
    "KvFound",
    "KvGet",
    "KvList",
    "KvPage",
    "KvPut",
    "KvTxn",
    "KvTxnDone",
    "KvWritten",
    "LeaseGrant",
    "LeaseRevoke",
    "Leased",
    "Notice",
    "Ping",
    "Pong",
    "Register",
    "Registered",
    "Renew",
    "Renewed",
    "ReportCheck",
    "Request",
    "Resolve",
    "Resolved",
    "RestoreCommit",
    "RestoreWrite",
    "ServiceList",
    "Services",
    "SetState",
    "Stats",
    "StatsReport",
    "WaitApplied",
    "WatchKv",
    "WatchService",
    "Watching",
    "Welcome",
]

RESULTS: Final[dict[type[Request[Any]], type]] = {
    Hello: Welcome,
    Ping: Pong,
    Register: Registered,
    Renew: Renewed,
    Deregister: Done,
    SetState: Done,
    WaitApplied: Done,
    ReportCheck: Done,
    Resolve: Resolved,
    Services: ServiceList,
    KvGet: KvFound,
    KvPut: KvWritten,
    KvDelete: KvWritten,
    KvList: KvPage,
    KvTxn: KvTxnDone,
    LeaseGrant: Leased,
    LeaseRevoke: Done,
    WatchService: Watching,
    WatchKv: Watching,
    CancelWatch: Done,
    Explain: Explained,
    Stats: StatsReport,
    BackupOpen: BackupOpened,
    BackupRead: BackupChunk,
    RestoreWrite: Done,
    RestoreCommit: Done,
}
REQUESTS: Final[dict[str, type[Request[Any]]]] = {request.method: request for request in RESULTS}
NOTICES: Final[dict[str, type[Notice]]] = {Applied.method: Applied}
