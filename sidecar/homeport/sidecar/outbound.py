"""The way out of a service: every request goes to a healthy instance of the service it names.

Which services there are, and where, is the part of `services`; here stands what happens to a request: where it is
routed, what is added to it, what its answers mean, and the copies that routes ask for.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Sequence
from typing import Final

from homeport.client.core.backoff import Rng
from homeport.sidecar.core import limits, routes
from homeport.sidecar.core.idempotency import ONCE
from homeport.sidecar.core.limits import Limits
from homeport.sidecar.core.retries import Failure
from homeport.sidecar.core.router import Place
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.core.routing import RouteRetries
from homeport.sidecar.core.settings import Retries, UpstreamTls
from homeport.sidecar.http1 import framing
from homeport.sidecar.http1.downstream import Downstream
from homeport.sidecar.http1.exchange import Exchange
from homeport.sidecar.http1.framing import RequestHead, ResponseHead
from homeport.sidecar.http1.keyed import KeyedExchange
from homeport.sidecar.http1.lines import Headers
from homeport.sidecar.http1.listener import FLAGS, SERVICE, STALE, UNDELIVERED
from homeport.sidecar.http1.mirror import MirrorExchange, Nobody
from homeport.sidecar.http1.routed import RoutedExchange
from homeport.sidecar.http1.tries import Tries
from homeport.sidecar.http1.upstream import Cluster, Endpoint
from homeport.sidecar.services import Configuration, Discovery, Services
from homeport.sidecar.sockets import BACKLOG
from homeport.sidecar.tls import Renewed

_log = logging.getLogger("homeport.sidecar")

HTTP_PREFIX: Final = "http:"  # of the names of local ports that stand for a service, which follows
TLS_META: Final = "tls"  # an instance whose meta says "true" here is met over TLS,
TLS_NAME_META: Final = "tls-server-name"  # and its certificate bears this name, if not its address


def _named(configuration: Configuration) -> set[UpstreamTls]:
    """The ways to encrypt that the configuration names."""
    everyone = (configuration.settings, *configuration.services.values())
    return {each.tls for each in everyone if each.tls is not None}


class PortClient(Downstream):
    """A client of a local port that stands for one service: its requests name no other by their Host."""

    __slots__ = ("_service",)

    def __init__(self, outbound: Outbound, service: bytes) -> None:
        super().__init__(outbound)
        self._service = service

    def parse(self, data: bytes, end: int, bounds: Limits) -> RequestHead:
        request = framing.parse_request(data, end, bounds)
        if not any(name == SERVICE for name, _ in request.mesh):
            request.mesh += ((SERVICE, self._service),)
        return request


class Outbound(Services):
    """Routes by name, balances, retries."""

    name = "outbound"
    retries_max = limits.RETRIES_MAX

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rng: Rng,
        pseudonym: str,
        discovery: Discovery | None,
        configuration: Configuration,
        share: int = 1,
    ) -> None:
        super().__init__(loop, rng, pseudonym, discovery, configuration, share)
        self.mirrors: dict[Nobody, None] = {}  # copies of requests, under way, the oldest first
        self.mirrors_dropped = 0  # too many, or too large
        self.delayed = 0  # requests that were delayed on purpose
        self.keys_given = 0  # to requests that came without one
        self.keyed_retries = 0  # of requests that may have been delivered, to where they are remembered
        self._tls = {each: Renewed(each) for each in _named(configuration)}

    def reconfigure(self, configuration: Configuration) -> None:
        # What may fail stands before anything else.
        fresh = {each: self._tls.get(each) or Renewed(each) for each in _named(configuration)}
        plain = UpstreamTls()
        self._tls = fresh | ({plain: self._tls[plain]} if plain in self._tls else {})  # that of instances that say so
        before = [(each, each.settings.tls) for each in self.clusters.values()]
        super().reconfigure(configuration)
        for each, tls in before:
            if each.settings.tls != tls:  # what is idle was opened by other rules
                for endpoint in each.endpoints.values():
                    for upstream in list(endpoint.idle):
                        upstream.close()
                    endpoint.idle.clear()

    async def accept_for(self, service: str, listening: socket.socket) -> None:
        """Accept at a socket that stands for one service."""
        self.keep(service)
        name = service.encode()
        server = await self.loop.create_server(lambda: PortClient(self, name), sock=listening, backlog=BACKLOG)
        self._servers.append(server)

    def begin_otherwise(self, exchange: Tries, cluster: Cluster) -> bool:
        if exchange.request.method in ONCE:  # a route may lead to a service whose requests bear keys
            KeyedExchange(exchange, cluster, self).begin_routed()
        elif cluster.router is not None:
            RoutedExchange(exchange, cluster, self).begin_routed()
        else:
            return False
        return True

    def cluster_at(self, place: Place, asked: Cluster) -> Cluster:
        """Where a route of `asked` leads.

        Raises:
            Refusal: nowhere.
        """
        return self._cluster(place.service) if place.service else asked

    def mirror(self, original: Exchange, asked: Cluster, place: Place, wire: bytes, body: bytes) -> bool:
        """Send a copy of a request; False: there are too many already, or nowhere to send it."""
        if len(self.mirrors) >= limits.MIRRORS_MAX:
            return False
        try:
            goal = self.cluster_at(place, asked)
        except Refusal:
            return False
        nobody = Nobody(self, self.mirrors)
        view = goal.view(place.view, place.subset) if place.subset is not None else None
        MirrorExchange(original, nobody, goal, wire, body).start(view)
        return True

    def route(self, request: RequestHead) -> Cluster:
        if request.target[:1] not in (b"/", b"*"):
            if request.connect:
                return self._cluster(self._hosts.destination(routes.split_connect(request.target)))
            request.retarget(*routes.split_absolute(request.target, method=request.method))
        elif request.mesh:
            for name, value in request.mesh:
                if name == SERVICE:
                    service = routes.service_of(value)
                    request.host = request.host or routes.authority(value)
                    return self._cluster(service)
        host = request.host
        found = self._by_host.get(host)
        if found is None:
            destination = self._hosts.destination(host)
            found = self._cluster(destination)
            if found.met and len(self._by_host) < limits.HOSTS_CACHED_MAX:
                self._by_host[host] = found
        return found

    def nobody(self, cluster: Cluster) -> Refusal:
        if not cluster.known:
            text = f"the registry has not said yet where {cluster.service!r} is"
        elif not cluster.met:
            return routes.unknown(cluster.service)
        else:
            text = f"none of the {len(cluster.endpoints)} instances of {cluster.service!r} is available"
        return Refusal(503, "UH", text)

    def failure_of(self, head: ResponseHead, retries: Retries | RouteRetries | None) -> Failure | None:
        for name, _value in head.mesh:
            if name == UNDELIVERED:
                return Failure.UNDELIVERED
        return Failure.STATUS if retries is not None and head.status in retries.statuses else None

    def forwarded(self, request: RequestHead, downstream: Downstream) -> list[bytes]:
        # The client is this machine's own service: what it says of its own clients is kept, and it is added.
        said: dict[bytes, bytes] = {}
        kept: list[bytes] = []
        for name, value in request.forwarded:
            if name == b"forwarded":
                kept.append(b"Forwarded: %b" % value)
            else:
                said[name] = b"%b, %b" % (said[name], value) if name in said else value
        chain = said.get(b"x-forwarded-for")
        return [
            *kept,
            b"X-Forwarded-For: %b" % (b"%b, %b" % (chain, downstream.peer) if chain else downstream.peer),
            b"X-Forwarded-Proto: %b" % said.get(b"x-forwarded-proto", b"http"),
            b"X-Forwarded-Host: %b" % said.get(b"x-forwarded-host", request.host),
        ]

    def asked_lines(self, asked: Sequence[tuple[bytes, bytes]], cluster: Cluster | None) -> list[bytes]:
        for name, _value in asked:
            if name == STALE and cluster is not None and cluster.service in self.subscriptions:
                return [b"%b: %d" % (STALE, self.subscriptions[cluster.service].age_s())]
        return []

    def mesh_fields(self, head: ResponseHead) -> Headers:
        return [field for field in head.mesh if field[0] == FLAGS]

    def tls_to(self, cluster: Cluster, endpoint: Endpoint) -> tuple[ssl.SSLContext, str] | None:
        settings = cluster.settings.tls
        meta = endpoint.instance.meta
        if settings is None:
            if meta.get(TLS_META) != "true":
                return None
            settings = UpstreamTls()
        met = self._tls.get(settings)
        if met is None:
            met = self._tls[settings] = Renewed(settings)
        return met.context, settings.server_name or meta.get(TLS_NAME_META) or endpoint.address

    def sweep(self, now: float) -> None:
        super().sweep(now)
        for met in self._tls.values():
            met.sweep(now)
        for nobody in list(self.mirrors):
            copied = nobody.exchange
            if copied is not None and copied.ends_s <= now:
                copied.client_lost()
            elif copied is not None and nobody.deadline_s <= now:
                copied.expired(now)

    def close(self) -> None:
        for nobody in list(self.mirrors):
            if nobody.exchange is not None:
                nobody.exchange.client_lost()
        super().close()
