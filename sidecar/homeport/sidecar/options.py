"""What can be said of a sidecar: one frozen struct for one process, for several, and for what they tell each other.

A new option is a field of `Options` and the same one of `Given`; a test holds the two together. Whatever is plain data
then reaches workers by itself, since a worker is told the whole struct; what all of them must have in sum is divided
in `share`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypedDict

import msgspec

from homeport.sidecar.core import limits as fixed
from homeport.sidecar.core.idempotency import Remembering
from homeport.sidecar.core.limits import Limits, Timeouts
from homeport.sidecar.core.routing import Routing
from homeport.sidecar.core.settings import ServiceSettings, divided
from homeport.sidecar.observer import NOTHING, Observing
from homeport.sidecar.outbound import HTTP_PREFIX
from homeport.sidecar.services import instance_at
from homeport.sidecar.sockets import parse_address
from homeport.sidecar.tcp import PREFIX
from homeport.sidecar.tls import ServerTls


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """All options of a sidecar.

    Attributes:
        outbound: `host:port` to take the service's own requests at; None or "off" for no such listener. Port 0 is any.
        inbound: `host:port` to take requests for the service at; needs `app`.
        app: `host:port` of the service itself.
        admin: `host:port` for operators and scrapers.
        static: Services that register nowhere: name to `host:port` addresses. Never looked up in the registry.
        tcp: Local ports that stand for a service each, for what is not HTTP/1.1: its name to `host:port`.
        http: The same for HTTP/1.1, with all that the outbound does for it.
        passthrough: Hosts outside the registry, `host` or `host:port`, that requests may go to.
        concurrency_max: Requests under way at the application; more are turned away, for others to serve. What has
            become a tunnel, a WebSocket, is a connection and none of them.
        limits: How large and how many; one for both listeners.
        timeouts: How long; one for both listeners.
        state_file: Where the last known endpoints are kept, for the next start; None for nowhere.
        start_traces: Whether a request without a `traceparent` gets one; one that has it always keeps it.
        inbound_tls: The certificate that clients of the inbound are shown; None: it speaks plain HTTP.
        remembering: How much the inbound remembers of answers to requests with an Idempotency-Key; None: nothing. For
            others to rely on that, the instance's meta must say `idempotency = "true"`.
        observing: What is written down of requests: an access log, traces. Nothing by default.
        settings: How services are balanced, timed and guarded.
        services: Those that differ, by name.
        routes: Where requests to a service go, by its name, while the registry's store has nothing to say of that.

    Raises:
        ValueError: an address is none, or an inbound has no application.
    """

    outbound: str | None = "127.0.0.1:15001"
    inbound: str | None = None
    app: str | None = None
    admin: str | None = None
    static: Mapping[str, Sequence[str]] = {}
    tcp: Mapping[str, str] = {}
    http: Mapping[str, str] = {}
    passthrough: Sequence[str] = ()
    concurrency_max: int = fixed.ACTIVE_MAX
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    state_file: Path | None = None
    start_traces: bool = False
    inbound_tls: ServerTls | None = None
    remembering: Remembering | None = None
    observing: Observing = NOTHING
    settings: ServiceSettings = ServiceSettings()
    services: Mapping[str, ServiceSettings] = {}
    routes: Mapping[str, Routing] = {}

    def __post_init__(self) -> None:
        for name in (
            "static",
            "tcp",
            "http",
            "services",
            "routes",
        ):  # nobody changes them afterwards, not even who made them
            msgspec.structs.force_setattr(self, name, dict(getattr(self, name)))
        addresses = self.addresses
        for address in addresses.values():
            parse_address(address)
        if self.app is not None:
            instance_at("app", self.app)
        elif "inbound" in addresses:
            raise ValueError("an inbound listener needs the application's address: app='host:port'")
        if self.remembering is not None and "inbound" not in addresses:
            raise ValueError("remembering is what an inbound does, and there is none: inbound='host:port'")
        for service, endpoints in self.static.items():
            for address in endpoints:
                instance_at(service, address)

    @property
    def addresses(self) -> dict[str, str]:
        """What is to be listened at, by the listener's name."""
        three = {"outbound": self.outbound, "inbound": self.inbound, "admin": self.admin}
        named = {name: address for name, address in three.items() if address is not None and address != "off"}
        ports = {PREFIX + service: address for service, address in self.tcp.items()}
        return named | ports | {HTTP_PREFIX + service: address for service, address in self.http.items()}

    def share(self, count: int) -> Options:
        """What each of `count` workers may do, so that all of them together do what these options allow.

        Without what is the parent's alone: the admin port and the endpoints' file.
        """
        return msgspec.structs.replace(
            self,
            admin=None,
            state_file=None,
            concurrency_max=max(1, self.concurrency_max // count),
            limits=dataclasses.replace(self.limits, connections=max(1, self.limits.connections // count)),
            settings=divided(self.settings, count),
            services={name: divided(each, count) for name, each in self.services.items()},
        )


class Given(TypedDict, total=False):
    """Some of the fields of `Options`, as keyword arguments."""

    outbound: str | None
    inbound: str | None
    app: str | None
    admin: str | None
    static: Mapping[str, Sequence[str]]
    tcp: Mapping[str, str]
    http: Mapping[str, str]
    passthrough: Sequence[str]
    concurrency_max: int
    limits: Limits
    timeouts: Timeouts
    state_file: Path | None
    start_traces: bool
    inbound_tls: ServerTls | None
    remembering: Remembering | None
    observing: Observing
    settings: ServiceSettings
    services: Mapping[str, ServiceSettings]
    routes: Mapping[str, Routing]


DEFAULT: Final = Options()
RELOADED: Final = (
    "static",
    "passthrough",
    "limits",
    "timeouts",
    "start_traces",
    "routes",
    "settings",
    "services",
)  # what can change while it runs
