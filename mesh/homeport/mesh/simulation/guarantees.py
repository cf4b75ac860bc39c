"""The names of what must hold in every run, as failures say them; where each is checked stands beside it."""

from __future__ import annotations

from typing import Final

LEASES: Final = "lease promise"  # leases.py: never before the TTL after a renewal, no later than a tick after it
KEPT: Final = "no acknowledged write lost"  # history.py: over crashes, power cuts, failing disks and replicas
LINEARIZABLE: Final = "linearizable keys"  # linearizability.py, of what all writers saw
FORWARD: Final = "no client reads backwards"  # keys.py: also one that moves from replica to replica
WATCHES: Final = "watches complete and in order"  # history.py
LOCKS: Final = "one valid lock holder"  # locks.py: by fencing token, and no sooner than a lock's delay
GONE: Final = "no request to who has left"  # requests.py: drained, deregistered or dead
ONCE: Final = "no retry of what may not be retried"  # requests.py
WHOLE: Final = "no truncated body taken for whole"  # requests.py
BOUNDED: Final = "bounded queues and memory"  # bounds.py
CONVERGED: Final = "every cache converges"  # convergence.py: once faults have stopped
ANSWERED: Final = "every call ends"  # run.py: with an answer or an error, in its time
SOUND: Final = "no defect"  # run.py: no error that nobody expected, in a task, a callback or the log

ALL: Final = (
    LEASES,
    KEPT,
    LINEARIZABLE,
    FORWARD,
    WATCHES,
    LOCKS,
    GONE,
    ONCE,
    WHOLE,
    BOUNDED,
    CONVERGED,
    ANSWERED,
    SOUND,
)
