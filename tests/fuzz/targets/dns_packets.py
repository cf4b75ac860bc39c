"""Any packet is answered rightly or not at all, at first and when it has been asked before; no packet is a defect.

The first byte of a case says how large an answer may be; the rest is the packet.
"""

from __future__ import annotations

import dns.message
import dns.rcode

from tests.registry.dns.test_malformed import SOME, both_ways, check, responder

SIZES = (512, 1232)
_RESPONDER = responder(SOME)


def one(data: bytes) -> None:
    """Run one case."""
    if not data:
        return
    packet = data[1:]
    for answer in both_ways(_RESPONDER, packet, SIZES[data[0] % len(SIZES)]):
        check(packet, answer)
        assert dns.message.from_wire(answer).rcode() != dns.rcode.SERVFAIL, "a defect"
