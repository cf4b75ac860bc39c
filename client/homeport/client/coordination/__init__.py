"""Locks, semaphores, elections, barriers and queues over the registry's keys. docs/coordination.md is their promise."""

from homeport.client.coordination.barrier import Barrier, DoubleBarrier
from homeport.client.coordination.election import Election, Leader
from homeport.client.coordination.holding import Holding
from homeport.client.coordination.lock import Lock
from homeport.client.coordination.queue import Claim, Queue
from homeport.client.coordination.semaphore import Semaphore
from homeport.client.coordination.session import Session

__all__ = [
    "Barrier",
    "Claim",
    "DoubleBarrier",
    "Election",
    "Holding",
    "Leader",
    "Lock",
    "Queue",
    "Semaphore",
    "Session",
]
