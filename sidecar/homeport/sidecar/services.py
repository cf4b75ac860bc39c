"""The services that an outbound follows: made known to the registry's client, kept current, and forgotten.

Strategy: a name is followed in the registry from its first request on, and the first requests wait a moment for the
registry's answer. What was known stays in use when the registry is gone. Names that have no instances and that
nobody asks for are forgotten, so that made-up names do not add up. `outbound` decides what happens to a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from msgspec import structs

from homeport.client.core.backoff import Rng
from homeport.client.core.errors import HomeportError, InvalidArgument
from homeport.client.core.model import Instance, InstanceKey, ServiceEvent
from homeport.client.core.snapshot import Known, Snapshot
from homeport.client.last_known import confirmed, taken
from homeport.sidecar.core import cluster, limits, routes
from homeport.sidecar.core.limits import Limits, Timeouts
from homeport.sidecar.core.route_table import RouteTable
from homeport.sidecar.core.routes import Hosts, Passed, Refusal
from homeport.sidecar.core.routing import Routing
from homeport.sidecar.core.settings import ServiceSettings
from homeport.sidecar.http1.listener import Listener
from homeport.sidecar.http1.upstream import Cluster
from homeport.sidecar.route_watch import Keys, RouteWatch
from homeport.sidecar.sockets import parse_address

_log = logging.getLogger("homeport.sidecar")


class Following(Protocol):
    """The last known instances of one service, as `homeport.client.Subscription` has them."""

    @property
    def known(self) -> bool: ...
    @property
    def live(self) -> bool: ...
    @property
    def held(self) -> bool: ...
    @property
    def revision(self) -> int: ...
    @property
    def instances(self) -> Mapping[InstanceKey, Instance]: ...
    def age_s(self) -> float: ...
    def recall(self, instances: Iterable[Instance], revision: int, age_s: float) -> None: ...
    def listen(self, changed: Callable[[ServiceEvent], None]) -> Callable[[], None]: ...
    def close(self) -> None: ...


class Waiting(Protocol):
    """Something that cannot go on before the registry has said who its service is."""

    cluster: Cluster | None

    def try_first(self) -> None: ...


class Discovery(Protocol):
    """What the sidecar needs of a registry's client."""

    @property
    def store_id(self) -> str: ...
    @property
    def kv(self) -> Keys | None:
        """Where documents of routes are; None: nowhere."""

    def subscribe(self, service: str) -> Following: ...


class Configuration(Protocol):
    """What an outbound is made of, and may be told anew; `homeport.sidecar.options.Options` says what each means."""

    @property
    def static(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def passthrough(self) -> Sequence[str]: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def timeouts(self) -> Timeouts: ...
    @property
    def settings(self) -> ServiceSettings: ...
    @property
    def services(self) -> Mapping[str, ServiceSettings]: ...
    @property
    def routes(self) -> Mapping[str, Routing]: ...


def instance_at(service: str, address: str) -> Instance:
    """An instance that stands in the configuration, `host:port`.

    Raises:
        ValueError: it is not `host:port`.
    """
    host, port = parse_address(address)
    if not port:
        raise ValueError(f"{address!r} needs a port from 1 to 65535")
    return Instance(service=service, id=address, address=host, port=port)


class Services(Listener):
    """The part of an outbound that knows which services there are, and where.

    Args:
        share: How many processes share what documents of routes let through; the configuration is divided already.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rng: Rng,
        pseudonym: str,
        discovery: Discovery | None,
        configuration: Configuration,
        share: int = 1,
    ) -> None:
        super().__init__(loop, rng, pseudonym, configuration.limits, configuration.timeouts)
        self._settings = configuration.settings
        self._services = {name.lower(): each for name, each in configuration.services.items()}
        self.table = RouteTable(configuration.routes, share)
        keys = discovery.kv if discovery is not None else None
        self.route_watch = RouteWatch(keys, rng, self.take_routes) if keys is not None else None
        self._routes_end = self.table.ends_exchanges  # whether any route has, or had, a time for a whole exchange
        self.clusters: dict[str, Cluster] = {}
        self.subscriptions: dict[str, Following] = {}
        self._discovery = discovery
        self._hosts = Hosts(configuration.static, configuration.passthrough)
        self._by_host: dict[bytes, Cluster] = {}  # spellings of Host that were resolved before
        self._waiting: dict[str, list[Waiting]] = {}  # service -> who waits until the registry has answered
        self._kept: dict[str, None] = {}  # services that are followed whether anybody asks or not
        self._stop_listening: dict[str, Callable[[], None]] = {}
        self.on_change: Callable[[], None] | None = None  # called when what is known of any service has changed
        for service, addresses in configuration.static.items():
            self._fix(service.lower(), [instance_at(service, address) for address in addresses])

    @property
    def ends_exchanges(self) -> bool:
        return self._routes_end or super().ends_exchanges

    def _fix(self, service: str, instances: list[Instance]) -> Cluster:
        fixed = self._made(service, fixed=True)
        fixed.update({instance.key: instance for instance in instances}, self.now())
        self.clusters[service] = fixed
        return fixed

    def reconfigure(self, configuration: Configuration) -> None:
        """Act on a changed configuration; requests under way end as they began."""
        self._settings = configuration.settings
        self._services = {name.lower(): each for name, each in configuration.services.items()}
        for changed in self.table.configure(configuration.routes):
            self._apply(changed)
        self.limits, self.timeouts = configuration.limits, configuration.timeouts
        self._hosts = Hosts(configuration.static, configuration.passthrough)
        self._by_host.clear()
        wanted = {
            service.lower(): [instance_at(service, address) for address in addresses]
            for service, addresses in configuration.static.items()
        }
        waiting: dict[str, list[Waiting]] = {}
        for service, each in list(self.clusters.items()):
            each.configure(self._settings_of(service), self.now())
            each.first_byte_s = self.timeouts.first_byte_s
            each.per_try_s = each.settings.per_try_s or self.timeouts.first_byte_s
            if each.fixed != (service in wanted):  # hosts that are passed to come back when somebody asks, if they may
                waiting[service] = self._waiting.pop(service, [])
                self._update(each, {})
                self._forget(service)
        for service, instances in wanted.items():
            found = self.clusters.get(service)
            if found is None:
                found = self._fix(service, instances)
                for one in waiting.get(service, ()):
                    one.cluster = found
                    one.try_first()
            else:
                self._update(found, {instance.key: instance for instance in instances})
        for service in self._kept:
            try:
                self.cluster_of(service)
            except Refusal as refusal:
                _log.error("service %r cannot be followed any more: %s", service, refusal.text)

    def _made(self, service: str, *, fixed: bool = False) -> Cluster:
        made: Cluster = cluster.Cluster(
            service, self._settings_of(service), fixed=fixed, followed=True, per_try_s=self.timeouts.first_byte_s
        )
        made.route(self.table.router(service))
        return made

    def _settings_of(self, service: str) -> ServiceSettings:
        own = self._services.get(service.lower(), self._settings)
        documented = self.table.settings(service)
        return own if documented is None else structs.replace(documented, tls=own.tls)

    def take_routes(self, service: str, document: bytes | None, revision: int) -> None:
        """Take in what the store holds for a service, None for nothing any more; a bad document changes nothing."""
        try:
            changed = self.table.offer(service, document, revision)
        except InvalidArgument as error:
            _log.error("the routes of %r at revision %d are refused: %s", service, revision, error)
            return
        if self.on_change is not None:
            self.on_change()
        if not changed:
            return
        self._apply(service)

    def _apply(self, service: str) -> None:
        """Act on what the table says of a service now."""
        self._routes_end = self._routes_end or self.table.ends_exchanges
        for name, each in self.clusters.items():
            if name.lower() == service.lower():
                each.configure(self._settings_of(name), self.now())
                each.route(self.table.router(name))

    def keep(self, service: str) -> None:
        """Follow a service from now on, whether anybody asks for it or not.

        Raises:
            InvalidArgument: no service can have this name, or nobody could say where it is.
        """
        try:
            found = self.cluster_of(service)
        except Refusal as refusal:
            raise InvalidArgument(f"{service!r} cannot be forwarded to: {refusal.text}") from None
        self._kept[found.service] = None

    def cluster_of(self, service: str) -> Cluster:
        """The endpoints of a service.

        Raises:
            Refusal: it cannot be followed.
        """
        return self._cluster(self._hosts.destination(service.encode()))

    def _cluster(self, destination: str | Passed) -> Cluster:
        found = self.clusters.get(destination)
        if found is None:
            if len(self.clusters) >= limits.SERVICES_MAX:
                raise Refusal(503, "UO", f"more than {limits.SERVICES_MAX} services are in use through this sidecar")
            if isinstance(destination, Passed):
                found = self._fix(destination, [instance_at(destination, destination)])
            elif self._discovery is None:
                raise routes.unknown(destination)
            else:
                found = self._follow(destination, self._discovery)
        found.used_at_s = self.now()
        return found

    async def recall(self, last: Snapshot, now_s: float) -> None:
        """Follow again what an earlier process followed, and begin with what it knew; return when that is confirmed.

        Args:
            now_s: the wall clock's time.
        """
        if self._discovery is None:
            return
        recalled = [known for known in last.services[: limits.SERVICES_MAX] if known.service not in self.clusters]
        for known in recalled:
            self._follow(known.service, self._discovery, known, now_s)
        if self.route_watch is not None:
            self.route_watch.recall(last.routes, last.store_id)
            self.route_watch.start()
        await confirmed([self.subscriptions[known.service] for known in recalled])

    def last_known(self, now_s: float) -> Snapshot:
        """What is known of every service that has instances, for a file; `now_s` is the wall clock's time."""
        store_id = self._discovery.store_id if self._discovery is not None else ""
        found = self.route_watch.documents.items() if self.route_watch is not None else ()
        routes = {service: document for service, (document, _revision) in found}
        return taken(store_id, self.subscriptions, routes, now_s)

    def _follow(self, service: str, discovery: Discovery, last: Known | None = None, now_s: float = 0.0) -> Cluster:
        followed = self._made(service)
        try:
            subscription = discovery.subscribe(service)
        except InvalidArgument:
            raise routes.unknown(service) from None
        except HomeportError as error:
            raise Refusal(503, "UH", f"the registry cannot be asked for {service!r}: {error}") from error
        if last is not None:
            subscription.recall(last.instances, last.revision, max(0.0, now_s - last.confirmed_at_s))
        self.clusters[service] = followed
        self.subscriptions[service] = subscription

        def changed(_event: ServiceEvent) -> None:
            self._update(followed, subscription.instances)
            if self.on_change is not None:
                self.on_change()

        self._stop_listening[service] = subscription.listen(changed)
        if subscription.known:
            self._update(followed, subscription.instances)
        return followed

    def _update(self, followed: Cluster, instances: Mapping[InstanceKey, Instance]) -> None:
        change = followed.update(instances, self.now())
        for upstream in change.closing:
            upstream.close()
        if change.hopeless:
            self.move(change.hopeless)
        for waiting in self._waiting.pop(followed.service, ()):
            waiting.try_first()

    def wait_known(self, cluster: Cluster, waiting: Waiting) -> None:
        self._waiting.setdefault(cluster.service, []).append(waiting)

    def give_up(self, waiting: Waiting) -> None:
        others = self._waiting.get(waiting.cluster.service) if waiting.cluster is not None else None
        if others and waiting in others:
            others.remove(waiting)

    def _forget(self, service: str) -> None:
        self.clusters.pop(service)
        self._waiting.pop(service, None)
        self._by_host.clear()  # rare, and refilled by the next request of each
        stop_listening = self._stop_listening.pop(service, None)
        if stop_listening is not None:
            stop_listening()
            self.subscriptions.pop(service).close()

    def sweep(self, now: float) -> None:
        super().sweep(now)
        unused: list[str] = []
        for service, each in self.clusters.items():
            for upstream in each.sweep(now, self.rng):
                upstream.close()
            if not each.endpoints and not each.fixed and now - each.used_at_s > limits.UNUSED_S:
                unused.append(service)
        for service in unused:
            if not self._waiting.get(service) and service not in self._kept:
                self._forget(service)

    def close(self) -> None:
        if self.route_watch is not None:
            self.route_watch.stop()
        super().close()
        for service in list(self.clusters):
            for endpoint in self.clusters[service].endpoints.values():
                for upstream in list(endpoint.idle):
                    upstream.close()
            self._forget(service)
