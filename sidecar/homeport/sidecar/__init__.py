"""The proxy that stands beside a service: outbound, it brings every call to a healthy instance; inbound, it lets the
service leave without failing anybody.
"""

from homeport.client.core.balancing import Balancing, HashOn, Outliers, Subset
from homeport.sidecar.app_watch import AppWatch
from homeport.sidecar.core.idempotency import Remembering
from homeport.sidecar.core.limits import Limits, Timeouts
from homeport.sidecar.core.routing import (
    Destination,
    Fault,
    HeaderEdits,
    HeaderMatch,
    Match,
    Mirror,
    RateLimit,
    Redirect,
    Rewrite,
    Route,
    RouteRetries,
    Routing,
)
from homeport.sidecar.core.settings import (
    Adaptive,
    Budget,
    Circuit,
    Hedging,
    Idempotency,
    Retries,
    ServiceSettings,
    UpstreamTls,
)
from homeport.sidecar.lifecycle import Registered
from homeport.sidecar.observer import Observing
from homeport.sidecar.options import Options
from homeport.sidecar.services import Discovery, Following
from homeport.sidecar.sidecar import Sidecar
from homeport.sidecar.takeover import Handover, TakeoverError, take_over
from homeport.sidecar.tls import ServerTls
from homeport.sidecar.workers import Workers

__all__ = [
    "Adaptive",
    "AppWatch",
    "Balancing",
    "Budget",
    "Circuit",
    "Destination",
    "Discovery",
    "Fault",
    "Following",
    "Handover",
    "HashOn",
    "HeaderEdits",
    "HeaderMatch",
    "Hedging",
    "Idempotency",
    "Limits",
    "Match",
    "Mirror",
    "Observing",
    "Options",
    "Outliers",
    "RateLimit",
    "Redirect",
    "Registered",
    "Remembering",
    "Retries",
    "Rewrite",
    "Route",
    "RouteRetries",
    "Routing",
    "ServerTls",
    "ServiceSettings",
    "Sidecar",
    "Subset",
    "TakeoverError",
    "Timeouts",
    "UpstreamTls",
    "Workers",
    "take_over",
]
