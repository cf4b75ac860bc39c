"""What the virtual world raises of its own; everything a simulated network does wrong is an ordinary `OSError`."""

from __future__ import annotations


class VirtualTimeError(RuntimeError):
    """Base of the errors below: the simulation, not the code under test, says that something cannot go on."""


class DeadlockError(VirtualTimeError):
    """Nothing is ready, no timer is set and nothing is on the wire, yet somebody still waits: it would wait forever."""


class StepLimitError(VirtualTimeError):
    """The run took more steps than it was allowed: usually a loop that never lets time pass."""


class NotVirtualError(VirtualTimeError, NotImplementedError):
    """The code reached for the real world (a socket, a process, a signal, another thread) from virtual time."""


class LeftBehindError(VirtualTimeError):
    """The run itself succeeded, but left errors that nobody retrieved or tasks that would not end."""
