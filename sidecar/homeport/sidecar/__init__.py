"""The proxy that stands beside a service: outbound, it brings every call to a healthy instance; inbound, it lets the
service leave without failing anybody.
"""

from homeport.sidecar.app_watch import AppWatch
from homeport.sidecar.core.limits import Limits, Timeouts
from homeport.sidecar.lifecycle import Registered
from homeport.sidecar.outbound import Discovery, Following
from homeport.sidecar.sidecar import Sidecar
from homeport.sidecar.takeover import Handover, TakeoverError, take_over
from homeport.sidecar.tls import ServerTls
from homeport.sidecar.workers import Workers

__all__ = [
    "AppWatch",
    "Discovery",
    "Following",
    "Handover",
    "Limits",
    "Registered",
    "ServerTls",
    "Sidecar",
    "TakeoverError",
    "Timeouts",
    "Workers",
    "take_over",
]
