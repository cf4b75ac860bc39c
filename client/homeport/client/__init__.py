"""The client, and the contract it shares with the registry; loads only the standard library, msgspec and msgpack."""

from homeport.client.client import Client
from homeport.client.core.errors import (
    BadValue,
    Busy,
    CasFailed,
    Closed,
    Compacted,
    ConnectionLost,
    FutureRevision,
    HomeportError,
    Internal,
    InvalidArgument,
    LeaseGone,
    LimitExceeded,
    NotFound,
    OutcomeUnknown,
    ProtocolError,
    ReadOnly,
    RegistryError,
    RequestError,
    Unauthorized,
    Unavailable,
    UnknownMethod,
    WrongLoop,
)
from homeport.client.core.messages import KvEvents
from homeport.client.core.model import (
    Check,
    Instance,
    InstanceKey,
    KeyValue,
    KvEvent,
    KvSnapshot,
    Lost,
    ServiceEvent,
    State,
    Status,
)
from homeport.client.kv import Kv
from homeport.client.leases import Lease
from homeport.client.registration import Registration
from homeport.client.rpc import StreamTransport
from homeport.client.subscription import Subscription
from homeport.client.transaction import Transaction
from homeport.client.transport import Link, Receiver, Transport
from homeport.client.typed import Entry, TypedEvent, TypedEvents, TypedKv, TypedSnapshot

__all__ = [
    "BadValue",
    "Busy",
    "CasFailed",
    "Check",
    "Client",
    "Closed",
    "Compacted",
    "ConnectionLost",
    "Entry",
    "FutureRevision",
    "HomeportError",
    "Instance",
    "InstanceKey",
    "Internal",
    "InvalidArgument",
    "KeyValue",
    "Kv",
    "KvEvent",
    "KvEvents",
    "KvSnapshot",
    "Lease",
    "LeaseGone",
    "LimitExceeded",
    "Link",
    "Lost",
    "NotFound",
    "OutcomeUnknown",
    "ProtocolError",
    "ReadOnly",
    "Receiver",
    "Registration",
    "RegistryError",
    "RequestError",
    "ServiceEvent",
    "State",
    "Status",
    "StreamTransport",
    "Subscription",
    "Transaction",
    "Transport",
    "TypedEvent",
    "TypedEvents",
    "TypedKv",
    "TypedSnapshot",
    "Unauthorized",
    "Unavailable",
    "UnknownMethod",
    "WrongLoop",
]
