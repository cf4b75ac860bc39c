"""`python -m benchmarks.capacity`: what so many instances ask of a cluster, reckoned from measured unit costs.

Arithmetic alone, so that it can be read and doubted: every unit cost names its source, and what was never
measured is not in the sum but listed as missing. docs/capacity.md shows the result for one million instances.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Final

from homeport.client.core.messages import Renew, Renewed
from homeport.client.core.wire import answer, ask
from homeport.client.registration import RENEWALS_PER_TTL
from homeport.registry.store.etcd_ownership import MEMBER_TTL_S

RENEWAL_US: Final = 9.66  # CPU of the server, one lease a call: ARCHITECTURE.md, Measured, "lease renewals"
WRITES_PER_S: Final = 14_600  # of one replica in batches of 100: ARCHITECTURE.md, Replicas over etcd
DELIVERY_US: Final = 0.8  # of an event to a watcher that is ready: ARCHITECTURE.md, Watches
KEY_BYTES: Final = 496  # of memory, at 200-byte values: ARCHITECTURE.md, Measured
KEYS_PER_INSTANCE: Final = 3  # its registration, its id and its lease; a check's status is one more once it has changed
WIRE_BYTES: Final = len(ask(1 << 20, Renew(leases=(1 << 62,)))) + len(answer(1 << 20, Renewed(ttls_s=(60.0,))))


@dataclass(frozen=True)
class Site:
    """What is there."""

    instances: int
    ttl_s: float
    replicas: int
    followers: int  # of each service
    changes_per_s: float  # registrations, ends and statuses, of all services together

    def figures(self) -> list[tuple[str, str, str]]:
        """What follows from it: a name, a figure, and how it is reckoned."""
        renewals = self.instances * RENEWALS_PER_TTL / self.ttl_s
        here = renewals / self.replicas
        orphans = self.instances / self.replicas
        heirs = max(1, self.replicas - 1)
        adoption_s = orphans / heirs / WRITES_PER_S
        return [
            ("renewals, all replicas", f"{renewals:,.0f}/s", f"{RENEWALS_PER_TTL:g} a TTL of {self.ttl_s:g} s"),
            ("of one core of each replica", f"{here * RENEWAL_US / 1e4:.0f} %", f"{RENEWAL_US} us each"),
            (
                "their traffic at each replica",
                f"{here * WIRE_BYTES * 8 / 1e6:.1f} Mbit/s",
                f"{WIRE_BYTES} bytes each, encoded, without TCP's own",
            ),
            ("renewals that reach etcd", "0/s", "a test holds it"),
            (
                "deliveries, of one core of each replica",
                f"{self.changes_per_s * self.followers / self.replicas * DELIVERY_US / 1e4:.1f} %",
                f"{self.changes_per_s:g} changes/s x {self.followers} followers, {DELIVERY_US} us each",
            ),
            (
                "keys in each mirror and in etcd",
                f"{self.instances * KEYS_PER_INSTANCE:,}",
                f"{KEYS_PER_INSTANCE} an instance",
            ),
            (
                "memory of each mirror, without the catalogue",
                f"{self.instances * KEYS_PER_INSTANCE * KEY_BYTES / 2**30:.1f} GiB",
                f"{KEY_BYTES} bytes a key",
            ),
            ("leases to adopt when a replica dies", f"{orphans:,.0f}", "each an equal share"),
            (
                "until all are adopted",
                f"{MEMBER_TTL_S + adoption_s:.0f} s",
                f"{MEMBER_TTL_S} s of silence, then {WRITES_PER_S:,}/s at each of {heirs}",
            ),
            (
                "registering everything anew",
                f"{self.instances / self.replicas / WRITES_PER_S * KEYS_PER_INSTANCE:.0f} s",
                f"{KEYS_PER_INSTANCE} keys each, if etcd keeps up with all replicas at {WRITES_PER_S:,}/s",
            ),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--ttl", type=float, default=60.0, metavar="S")
    parser.add_argument("--replicas", type=int, default=5)
    parser.add_argument("--followers", type=int, default=1000, help="of each service")
    parser.add_argument("--changes", type=float, default=100.0, metavar="N", help="a second, of all services together")
    options = parser.parse_args()
    site = Site(options.instances, options.ttl, options.replicas, options.followers, options.changes)
    print("| what | figure | from |\n|---|---|---|")
    for what, figure, source in site.figures():
        print(f"| {what} | {figure} | {source} |")


if __name__ == "__main__":
    main()
