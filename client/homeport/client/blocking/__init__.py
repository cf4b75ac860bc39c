"""The client for code that blocks: scripts, Django, Flask, Celery. Every name is that of the async client.

Models and errors are the same, and are imported from `homeport.client`.
"""

from homeport.client.blocking.client import Client
from homeport.client.blocking.coordination import (
    Barrier,
    Claim,
    DoubleBarrier,
    Election,
    Holding,
    Lock,
    Queue,
    Semaphore,
    Session,
)
from homeport.client.blocking.keys import Kv, Lease, Transaction, TypedKv
from homeport.client.blocking.life import Changes
from homeport.client.blocking.picking import Resolver
from homeport.client.blocking.services import Registration, Subscription

__all__ = [
    "Barrier",
    "Changes",
    "Claim",
    "Client",
    "DoubleBarrier",
    "Election",
    "Holding",
    "Kv",
    "Lease",
    "Lock",
    "Queue",
    "Registration",
    "Resolver",
    "Semaphore",
    "Session",
    "Subscription",
    "Transaction",
    "TypedKv",
]
