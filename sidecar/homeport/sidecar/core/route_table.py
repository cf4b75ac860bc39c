"""The routes in force, by service: from the configuration, or from the registry's store, which counts for more.

What the store says is judged here. A document that is not right changes nothing: the last good one stays in force, and
the reason stands beside it until a good one comes, or none is wanted any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from homeport.client.core.errors import InvalidArgument
from homeport.sidecar.core.router import Router
from homeport.sidecar.core.routing import Routing, parsed
from homeport.sidecar.core.settings import ServiceSettings, divided

PREFIX: Final = "homeport/routes/"  # of the keys that hold documents; the service's name follows
SERVICES_MAX: Final = 1024  # with documents: as many as can be in use through one sidecar


class Routed:
    """What is known of one service's routes."""

    __slots__ = ("error", "file", "refused_revision", "revision", "router", "store")

    def __init__(self) -> None:
        self.file: Routing | None = None
        self.store: Routing | None = None  # the last good one
        self.revision = 0  # of the last good one
        self.error = ""  # why the present one is not in force
        self.refused_revision = 0
        self.router: Router | None = None

    @property
    def in_force(self) -> Routing | None:
        return self.store if self.store is not None else self.file


class RouteTable:
    """Documents by service, names in lower case.

    Args:
        file: Those of the configuration.
        share: How many processes share what limits let through.
    """

    def __init__(self, file: Mapping[str, Routing] | None = None, share: int = 1) -> None:
        self.refused = 0  # documents that were not right
        self._share = share
        self._services: dict[str, Routed] = {}
        self.configure(file or {})

    def __iter__(self) -> Iterator[tuple[str, Routed]]:
        return iter(sorted(self._services.items()))

    @property
    def ends_exchanges(self) -> bool:
        """Whether any route sets a time for a whole exchange."""
        plans = (plan for _, entry in self if entry.router is not None for plan in entry.router.plans)
        return any(plan.route.timeout_s for plan in plans)

    def router(self, service: str) -> Router | None:
        """What decides for the requests to a service; None: they go to any of its instances."""
        entry = self._services.get(service.lower())
        return entry.router if entry is not None else None

    def settings(self, service: str) -> ServiceSettings | None:
        """What its document says of how a service is called; None: nothing."""
        entry = self._services.get(service.lower())
        routing = entry.in_force if entry is not None else None
        if routing is None or routing.settings is None:
            return None
        return divided(routing.settings, self._share)

    def configure(self, file: Mapping[str, Routing]) -> list[str]:
        """Let the configuration say this, and nothing else; return the services for which that changes anything."""
        file = {service.lower(): routing for service, routing in file.items()}
        changed: list[str] = []
        for service in sorted(self._services.keys() | file.keys()):
            entry = self._services.setdefault(service, Routed())
            before, entry.file = entry.in_force, file.get(service)
            if entry.in_force != before:
                self._route(entry)
                changed.append(service)
            if entry.file is None and entry.store is None and not entry.error:
                del self._services[service]
        return changed

    def offer(self, service: str, document: bytes | None, revision: int) -> bool:
        """Take in what the store holds for a service, None for nothing any more; return whether anything changes.

        Raises:
            InvalidArgument: it is not a document, and changes nothing.
        """
        service = service.lower()
        entry = self._services.get(service)
        if document is None:
            return entry is not None and self._withdraw(service, entry)
        if entry is None:
            if len(self._services) >= SERVICES_MAX:
                self.refused += 1
                raise InvalidArgument(
                    f"{SERVICES_MAX} services have routes already, and that is as many as there may be"
                )
            entry = self._services[service] = Routed()
        try:
            routing = parsed(document)
        except InvalidArgument as error:
            self.refused += 1
            entry.error, entry.refused_revision = error.message, revision
            raise
        entry.error, entry.refused_revision, entry.revision = "", 0, revision
        if routing == entry.store:
            return False
        entry.store = routing
        self._route(entry)
        return True

    def _withdraw(self, service: str, entry: Routed) -> bool:
        changes = entry.store is not None
        entry.store, entry.error, entry.revision, entry.refused_revision = None, "", 0, 0
        if entry.file is None:
            del self._services[service]
        self._route(entry)
        return changes

    def _route(self, entry: Routed) -> None:
        routing = entry.in_force
        entry.router = Router(routing, entry.router, self._share) if routing is not None and routing.routes else None
