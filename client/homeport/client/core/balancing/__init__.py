"""Which of several endpoints takes the next request: pure policies, for the sidecar and for clients that balance."""

from homeport.client.core.balancing.candidates import Candidates, Load, Policy
from homeport.client.core.balancing.least_request import least_request

__all__ = ["Candidates", "Load", "Policy", "least_request"]
