"""Which of several endpoints takes the next request: pure policies, for the sidecar and for clients that balance."""

from homeport.client.core.balancing.candidates import Candidates, Load
from homeport.client.core.balancing.least_request import LeastRequest
from homeport.client.core.balancing.maglev import Maglev
from homeport.client.core.balancing.outliers import OutlierDetector, readmit
from homeport.client.core.balancing.peak_ewma import Latency, PeakEwma
from homeport.client.core.balancing.round_robin import RoundRobin
from homeport.client.core.balancing.selection import Target, Zoned, choose, eligible, fit, grown
from homeport.client.core.balancing.settings import Balancing, HashOn, Outliers, Subset

__all__ = [
    "Balancing",
    "Candidates",
    "HashOn",
    "Latency",
    "LeastRequest",
    "Load",
    "Maglev",
    "OutlierDetector",
    "Outliers",
    "PeakEwma",
    "RoundRobin",
    "Subset",
    "Target",
    "Zoned",
    "choose",
    "eligible",
    "fit",
    "grown",
    "readmit",
]
