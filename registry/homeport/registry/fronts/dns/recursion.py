"""Names that are not ours, asked of the recursors: one try after the other, each from a new port with a new id.

Equal questions that are under way share one, so that a crowd costs one question, and so that a loop (a recursor that
passes its questions back to us) ends where it closes: the second round joins the first, and both time out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from homeport.client.core.backoff import Rng
from homeport.registry.fronts.dns import question
from homeport.registry.fronts.dns.question import Query
from homeport.registry.fronts.dns.responder import Alias
from homeport.registry.fronts.dns.settings import UDP_BYTES, recursor_address

_log = logging.getLogger("homeport.registry.dns")

TRY_S: Final = 2.0  # what Consul gives a recursor
ROUNDS: Final = 2  # through all recursors; clients give up after five seconds or so
DEADLINE_S: Final = 8.0
UNDER_WAY_MAX: Final = 512  # each holds a socket; beyond that, questions fail at once
_REPLY_BYTES_MAX: Final = 65_535


class Recursion:
    """Asks the recursors.

    Args:
        recursors: "ip" or "ip:port", in the order in which they are tried.
    """

    def __init__(self, recursors: tuple[str, ...], rng: Rng) -> None:
        self._recursors = [recursor_address(one) for one in recursors]
        self._rng = rng
        self._under_way: dict[tuple[object, ...], asyncio.Task[bytes | None]] = {}

    async def ask(self, query: Query) -> dns.message.Message | None:
        """What a recursor says to a question, None if none says anything in time."""
        key = (query.labels, query.qtype, query.do, query.cd)
        task = self._under_way.get(key)
        if task is None:
            if len(self._under_way) >= UNDER_WAY_MAX:
                return None
            task = self._under_way[key] = asyncio.create_task(self._asked(query))
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        reply = await asyncio.shield(task)
        return None if reply is None else dns.message.from_wire(reply, ignore_trailing=True)

    async def close(self) -> None:
        """Give up whatever is under way."""
        tasks = tuple(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _asked(self, query: Query) -> bytes | None:
        asked = dns.message.make_query(
            dns.name.Name((*query.labels, b"")),
            dns.rdatatype.RdataType.make(query.qtype),
            use_edns=0,
            payload=UDP_BYTES,
            want_dnssec=query.do,
            id=self._rng.randrange(1 << 16),
        )
        if query.cd:
            asked.flags |= dns.flags.CD
        try:
            async with asyncio.timeout(DEADLINE_S):
                for recursor in self._recursors * ROUNDS:
                    asked.id = self._rng.randrange(1 << 16)
                    try:
                        async with asyncio.timeout(TRY_S):
                            reply = await _exchange(asked, recursor)
                    except (OSError, TimeoutError) as error:
                        _log.debug("recursor %s: %r", recursor, error)
                        continue
                    if reply[3] & 15 in (question.SERVFAIL, question.REFUSED) and len(self._recursors) > 1:
                        continue
                    return reply
        except TimeoutError:
            pass
        return None


async def _exchange(asked: dns.message.Message, recursor: tuple[str, int]) -> bytes:
    """One question and its answer: over UDP, and again over TCP if that was cut."""
    wire = asked.to_wire()
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: _Waiting(asked), remote_addr=recursor)
    try:
        transport.sendto(wire)
        reply = await protocol.reply
    finally:
        transport.close()
    if not reply[2] & 0x02:
        return reply
    reader, writer = await asyncio.open_connection(*recursor)
    try:
        writer.write(len(wire).to_bytes(2, "big") + wire)
        whole = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    except asyncio.IncompleteReadError:
        return reply  # cut, and it says so
    finally:
        writer.close()
    return whole if _answers(asked, whole) else reply


class _Waiting(asyncio.DatagramProtocol):
    """Waits for the answer to one question, and takes no other: the port, the id and the name must be right."""

    def __init__(self, asked: dns.message.Message) -> None:
        self._asked = asked
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, _addr: object) -> None:
        if not self.reply.done() and _answers(self._asked, data):
            self.reply.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(exc if isinstance(exc, OSError) else OSError(str(exc)))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.reply.done():
            self.reply.cancel()


def _answers(asked: dns.message.Message, data: bytes) -> bool:
    """Whether a message is a readable answer to this question."""
    if len(data) > _REPLY_BYTES_MAX or int.from_bytes(data[:2], "big") != asked.id:
        return False
    try:
        return asked.is_response(dns.message.from_wire(data, ignore_trailing=True))
    except Exception:  # noqa: BLE001 - whatever a library makes of garbage, it is garbage
        return False


def passed_on(
    query: Query, reply: dns.message.Message, aliases: Sequence[Alias], room: int, udp_bytes: int, recursive: bool
) -> bytes | None:
    """Another's answer as the asker's own; cut, and said so, where it does not fit; None if it cannot be written.

    Args:
        reply: what was said to the last of `aliases`, or to the question itself.
        room: bytes of the message, its OPT record included.
        udp_bytes: what we say we take.
        recursive: whether we say that recursion is available.
    """
    answer = dns.message.make_response(_as_asked(query), recursion_available=recursive)
    if aliases:
        answer.flags |= dns.flags.AA
    answer.set_rcode(reply.rcode())
    if reply.flags & dns.flags.AD:
        answer.flags |= dns.flags.AD
    if reply.flags & dns.flags.TC:
        answer.flags |= dns.flags.TC
    answer.answer, answer.authority, answer.additional = list(reply.answer), reply.authority, reply.additional
    owner = answer.question[0].name
    for at, alias in enumerate(aliases):
        rdata = dns.rdata.from_wire(dns.rdataclass.IN, dns.rdatatype.CNAME, alias.target, 0, len(alias.target))
        answer.answer.insert(at, dns.rrset.from_rdata(owner, alias.ttl_s, rdata))
        owner, _ = dns.name.from_wire(alias.target, 0)
    if query.udp_bytes is not None:
        answer.use_edns(0, dns.flags.DO if query.do else 0, udp_bytes)
    else:
        answer.use_edns(-1)
    for attempt in ("whole", "answers", "nothing"):
        try:
            return answer.to_wire(max_size=room)
        except dns.exception.TooBig:
            if attempt == "whole":
                answer.authority, answer.additional = [], []
            else:
                answer.flags |= dns.flags.TC
                answer.answer = []
        except dns.exception.DNSException:
            return None
    return None


def _as_asked(query: Query) -> dns.message.Message:
    """The question as dnspython's, in the case that it was sent in."""
    header = query.id + bytes((1 if query.rd else 0, 0x10 if query.cd else 0)) + question.COUNTS_PLAIN
    return dns.message.from_wire(header + query.wire)
