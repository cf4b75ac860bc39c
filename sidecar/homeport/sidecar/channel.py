"""What the parent and a worker say to each other, over a socket pair: one MessagePack message after the other.

The parent tells of endpoints and asks for reports; a worker says which services it is asked for, and what it has met.
A channel that ends is the other process's end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from homeport.client.core.errors import HomeportError
from homeport.client.core.model import Instance, InstanceKey
from homeport.client.core.snapshot import SNAPSHOT_BYTES_MAX
from homeport.client.core.wire import UNREADABLE, Splitter
from homeport.sidecar.core.explain_routes import Question
from homeport.sidecar.options import Options

FRAME_BYTES_MAX: Final = SNAPSHOT_BYTES_MAX  # one service has no more endpoints than all of them


class Routes(msgspec.Struct, frozen=True, tag="routes"):
    """What the registry's store holds of a service's routes; None: nothing any more."""

    service: str
    document: bytes | None
    revision: int


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """The first message to a worker: all that a sidecar is made of. `sockets` are inherited file descriptors."""

    name: str
    sockets: dict[str, list[int]]
    options: Options
    documents: list[Routes] = []  # of routes, as the registry's store has them
    share: int = 1  # of how many workers this is one


class Reconfigure(msgspec.Struct, frozen=True, tag="reconfigure"):
    """The configuration has changed: this worker's share of it."""

    options: Options


class Told(msgspec.Struct, frozen=True, tag="told"):
    """What the registry says of a service, or that it stopped or started saying anything.

    With `snapshot`, `changed` is the whole set; without `known`, nothing is known yet.
    """

    service: str
    known: bool
    revision: int
    live: bool
    held: bool
    age_s: float
    snapshot: bool = False
    changed: tuple[Instance, ...] = ()
    removed: tuple[InstanceKey, ...] = ()


class BeginDrain(msgspec.Struct, frozen=True, tag="begin_drain"):
    """From now on, answers that come in say `Connection: close`."""


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Drain, or with `retire` stop accepting and wait for the connections' end; `Drained` of that number answers."""

    number: int
    timeout_s: float
    retire: bool = False


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Report how it stands; answered by `Report` with the same number."""

    number: int
    explain: Question | None = None  # also how requests to a service are balanced


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Close everything and exit."""


class Ejected(msgspec.Struct, frozen=True, tag="ejected"):
    """A worker has ejected an endpoint, for so long; from the parent: another one has."""

    service: str
    key: InstanceKey
    lasts_s: float


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker accepts connections."""


class Subscribe(msgspec.Struct, frozen=True, tag="subscribe"):
    """Somebody asks this worker for a service."""

    service: str


class Unsubscribe(msgspec.Struct, frozen=True, tag="unsubscribe"):
    """Nobody does any more."""

    service: str


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """Requests to the application have failed."""


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """The end of a `Drain`, and whether nothing was left."""

    number: int
    whole: bool


class Report(msgspec.Struct, frozen=True, tag="report"):
    """How a worker stands, as its admin port would say it."""

    number: int
    clusters: list[Any]
    stats: dict[str, Any]
    routes: dict[str, Any]
    explained: dict[str, Any] | None
    metrics: bytes


ToWorker = Setup | Reconfigure | Told | Routes | Ejected | BeginDrain | Drain | Ask | Stop
ToParent = Ready | Subscribe | Unsubscribe | Ejected | Trouble | Drained | Report


def _path(_kind: type, text: str) -> Path:
    return Path(text)  # all that is no plain data


encode: Final = msgspec.msgpack.Encoder(enc_hook=os.fspath).encode
to_worker: Final[msgspec.msgpack.Decoder[ToWorker]] = msgspec.msgpack.Decoder(ToWorker, dec_hook=_path)
to_parent: Final[msgspec.msgpack.Decoder[ToParent]] = msgspec.msgpack.Decoder(ToParent)


class Channel(asyncio.Protocol):
    """One end.

    Args:
        decoder: Of what the other end says.
        received: Called with each message, in order.
        closed: Called once, at the end: the other process is gone, or talks nonsense.
    """

    def __init__(
        self, decoder: msgspec.msgpack.Decoder[Any], received: Callable[[Any], None], closed: Callable[[], None]
    ) -> None:
        self._decoder = decoder
        self._received = received
        self._closed = closed
        self._splitter = Splitter(FRAME_BYTES_MAX)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._splitter.feed(data):
                self._received(self._decoder.decode(frame))
        except (HomeportError, *UNREADABLE):
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._splitter.close()
        self._closed()

    def send(self, message: ToWorker | ToParent) -> None:
        """Tell the other end; without effect once it is gone."""
        self.send_encoded(encode(message))

    def send_encoded(self, frame: bytes) -> None:
        """The same for a message that several workers get."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    @property
    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()
