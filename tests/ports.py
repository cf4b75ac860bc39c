"""Ports for what tests start a moment later, each given out once and never by the kernel to anybody else meanwhile."""

from __future__ import annotations

import random

from homeport.mesh.demo.processes import FreePorts

_PORTS = FreePorts(random.Random())  # of no seed: test processes side by side must not choose alike


def free_port() -> int:
    """A TCP port of loopback that nobody listens on, below those that outgoing connections and port 0 get."""
    return _PORTS.take()
