"""Every bound of the registry, by name, with the reason for the number."""

from __future__ import annotations

from typing import Final

KEY_BYTES_MAX: Final = 4096  # two 512-byte names percent-encoded to three times their length, and change
VALUE_BYTES_MAX: Final = 1024 * 1024  # etcd's 1.5 MiB covers a whole request: value, key and envelope fit below it
TXN_OPS_MAX: Final = 128  # etcd's and Consul's number; as the user counts them, so our own bookkeeping comes on top
TXN_DEPTH_MAX: Final = 8  # nested transactions: deeper than any recipe in use, shallow enough for recursion
TXN_KEYS_MAX: Final = 10_000  # in the ranges of a user's transaction: some ten milliseconds of the loop
LEASES_MAX: Final = 1_000_000  # about 300 bytes each
RENEW_LEASES_MAX: Final = 10_000  # leases in one renewal call: 90 KB on the wire, a few milliseconds of work

HISTORY_REVISIONS_MAX: Final = 10_000  # for automatic compaction: minutes of writes at hundreds a second
HISTORY_AGE_S_MAX: Final = 600.0  # and no older than ten minutes, twice the longest default blocking query

WATCH_BUFFER_BATCHES: Final = 256  # live revisions a watcher may be behind before it reads from history instead
WATCH_PAGE_REVISIONS: Final = 512  # revisions looked through in one go: about 200 us, so that no resume holds the loop
WATCHES_PER_CONNECTION_MAX: Final = 10_000  # a sidecar that follows every service of a large site
CONNECTION_OUT_BYTES_MAX: Final = 16 * 1024 * 1024  # unsent bytes of one connection: eight full frames
CONNECTION_CALLS_MAX: Final = 4096  # unanswered calls of one connection
LISTEN_BACKLOG: Final = 1024  # connections that wait to be accepted: after a restart all clients come at once
CONNECTIONS_MAX: Final = 20_000  # half of a usual file limit of 65,536 stays free for probes and journals
PAGE_BYTES: Final = 1024 * 1024  # a page of a longer answer: half a frame, so that one largest value still fits

DELETIONS_REMEMBERED: Final = 100_000  # so that absent names answer an index of their own; 100 bytes each
PREFIXES_REMEMBERED: Final = 16_384  # whose index is kept up to date: as many as can be waited for at once
HTTP_BODY_BYTES_MAX: Final = 2 * 1024 * 1024  # a base64 transaction holding one value of the largest size
BLOCKING_WAIT_S_MAX: Final = 600.0  # Consul's cap on `wait`
PROBES_AT_ONCE: Final = 256  # open probe connections: 10,000 checks each 10 s at 250 ms each
STATUS_TICK_S: Final = 0.05  # probe results are gathered this long and written in one transaction
