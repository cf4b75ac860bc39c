"""What a client puts up with, by name, with the reason for the number."""

from __future__ import annotations

from typing import Final

CALL_S: Final = 5.0  # for a call, waiting for a link included: a registry restarts in less
WAIT_APPLIED_S_MAX: Final = 30.0  # as registries allow: a drain that has waited longer must not wait for one follower
RENEW_LEASES_MAX: Final = 10_000  # in one call, as registries allow
CAUGHT_UP_S: Final = 2.0  # for a replica to show what another has shown before; a mirror is a few milliseconds behind
SETTLED_S: Final = 5.0  # a link that lived this long was no fluke: the next loss begins with short delays again
ROUND_S: Final = 10.0  # registries of no use are left once each in this time: if all are, a link that can read is kept
RESOLVED_MAX: Final = 1000  # services followed for `resolve` alone: a tenth of the watches a connection may have
RENEWED_S: Final = 2.0  # for a renewal, where there are other registries: a fifth of the default TTL
RENEWED_SHARE: Final = 0.2  # of the TTL, if that is longer
AGAIN_AT_ONCE: Final = 4  # registrations of a client made again: a thousand clients at once do not outwait `CALL_S`
RECALL_S: Final = 1.0  # who starts waits this long for its last known endpoints to be confirmed
FOLLOWED_MAX: Final = 1000  # services of one resolver: whoever asks for more asks by accident
REOPEN_S: Final = 1.0  # before a watch is asked for again that the registry was too busy to open
CLOCKS_APART: Final = 0.01  # by how much two machines' seconds may differ: hundreds of times what quartz drifts
FAREWELL_S: Final = 2.0  # to give back a lease in; past that it ends by itself
