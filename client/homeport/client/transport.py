"""How a client reaches a registry: two small protocols, over streams (`rpc.py`) and, by the registry, in process."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol, TypeVar

from homeport.client.core.errors import HomeportError
from homeport.client.core.messages import Event, Notice, Request, Welcome

R = TypeVar("R")


class Receiver(Protocol):
    """What the user of a link is told; called synchronously from the event loop, and must neither block nor raise."""

    def event(self, watch: int, event: Event) -> None:
        """A watch delivered something."""
        ...

    def closed(self, error: HomeportError) -> None:
        """The link is gone, once, for whatever reason but `Link.close`; its calls have failed with `ConnectionLost`."""
        ...


class Link(Protocol):
    """One connection to one registry, after its hello. Watches and leases registered through it are tied to it."""

    @property
    def welcome(self) -> Welcome:
        """What the registry said of itself."""
        ...

    def call(self, request: Request[R]) -> Awaitable[R]:
        """Ask; calls are sent in the order they are made. Cancelling forgets the answer, not the effect.

        Raises:
            HomeportError: what the registry answered, `ConnectionLost` when no answer can come any more.
        """
        ...

    def notify(self, notice: Notice) -> None:
        """Say something; lost without a word if the link is gone."""
        ...

    async def close(self) -> None:
        """Close; outstanding calls fail with `ConnectionLost`. Idempotent."""
        ...


class Transport(Protocol):
    """A way to open links."""

    async def connect(self, receiver: Receiver) -> Link:
        """Open a link and say hello.

        Raises:
            Unavailable: nobody answered there within the transport's timeout.
            RequestError: the registry refused the hello.
        """
        ...
