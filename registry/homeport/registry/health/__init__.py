"""Active health checking: `Prober` looks at one instance once, `Scheduler` decides when and tells what changed."""

from homeport.registry.health.probes import Prober
from homeport.registry.health.scheduler import Scheduler

__all__ = ["Prober", "Scheduler"]
