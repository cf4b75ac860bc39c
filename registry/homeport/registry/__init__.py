"""The registry: `Registry` runs in your process or behind `homeport serve`."""

from homeport.registry.fronts.dns.settings import DnsSettings
from homeport.registry.registry import At, Registry
from homeport.registry.threads import RegistryThread

__all__ = ["At", "DnsSettings", "Registry", "RegistryThread"]
