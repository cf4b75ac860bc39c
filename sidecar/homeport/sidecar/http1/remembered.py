"""A request with an idempotency key, at the inbound: run once, and answered as often as it comes.

Strategy: the request is taken in whole, then the memory is asked (`core.idempotency`). The one that is run is an
ordinary exchange with the application that also writes down what it passes on; its client may leave, and it goes on
with nobody in the client's place, because whoever asks again waits for its answer. Every end of it is an end of its
entry: answered, nobody knows, or certainly not delivered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from homeport.sidecar.core.idempotency import (
    TOKEN_HEADER,
    Answer,
    Entry,
    Memory,
    Token,
    Verdict,
    fingerprint_of,
    said,
    scope_of,
    token_in,
)
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.http1 import bodies, framing
from homeport.sidecar.http1.exchange import Exchange
from homeport.sidecar.http1.framing import ResponseHead
from homeport.sidecar.http1.lines import Headers
from homeport.sidecar.http1.mirror import Nobody
from homeport.sidecar.http1.tries import Tries
from homeport.sidecar.http1.upstream import Cluster

if TYPE_CHECKING:
    from homeport.sidecar.inbound import Inbound

LEFT_MAX: Final = 128  # requests that go on without their client; more would be a way to keep an application busy
LEFT_S_MAX: Final = 60.0  # for one of them: nobody asks again for longer than that
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_REPLAYED: Final = b"Idempotent-Replayed: true"


class Left(Nobody):
    """In the place of a client that has left."""

    __slots__ = ()

    def __init__(self, inbound: Inbound, peer: bytes) -> None:
        super().__init__(inbound, inbound.left)
        self.peer = peer

    def finished(self, keep: bool, now: float) -> None:
        exchange = self.exchange
        if exchange is not None and exchange.seen is not None and self.listener.observer is not None:
            self.listener.observer.ended(exchange, exchange.seen)
        super().finished(keep, now)
        self.listener.exchange_ended()


class RememberedExchange(Exchange):
    """Takes the place of `plain`, which has been routed to `app` and has done nothing yet."""

    _entry: Entry[RememberedExchange] | None = None  # of the one that is run, until it is over
    _awaited: Entry[RememberedExchange] | None = None  # the one whose answer is waited for
    _asked = False  # the memory has decided
    _head: ResponseHead | None = None  # of the answer, as it is written down
    _size = 0  # of the body so far

    def __init__(self, plain: Tries, app: Cluster, inbound: Inbound, key: bytes) -> None:
        super().__init__(plain.downstream, plain.request)
        self.take_over(plain)
        self._app = app
        self._inbound = inbound
        self._idempotency_key = key
        self._body: list[bytes] = []  # of the answer, as it is written down
        self._trailers: Headers = []
        self._token: Token | None = None
        for name, value in self.request.mesh:
            if name == TOKEN_HEADER:
                self._token = token_in(value)
        self.downstream.exchange = self

    @property
    def _memory(self) -> Memory[RememberedExchange]:
        memory = self._inbound.memory
        assert memory is not None
        return memory

    # The request.

    def begin_remembered(self) -> None:
        """Take it in, and ask the memory once it is whole."""
        if self.request.expect and not self.request_done and self.request.minor == 1:
            self.downstream.send(_CONTINUE)
        self.request.expect = False
        self._go_on()

    def _go_on(self) -> None:
        if self.request_done or self._is_too_large:
            self._ask()
        else:
            self.downstream.deadline_s = self.listener.now() + self.listener.timeouts.body_s

    @property
    def _is_too_large(self) -> bool:
        return self._held_bytes > self.listener.limits.replay_bytes

    def request_piece(self, piece: bytes, done: bool, trailers: Headers) -> None:
        if self._asked:
            super().request_piece(piece, done, trailers)
            return
        if self.seen is not None:
            self.seen.bytes_in += len(piece)
        self._hold(piece, done, trailers)
        self.request_done = done
        self._go_on()

    def _ask(self) -> None:
        request = self.request
        self._asked = True
        try:
            self._wire = self.listener.encode_request(request, self.downstream)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        fingerprint = None
        if not self._is_too_large:
            body = b"".join(self._held or ())
            if request.length == framing.CHUNKED:
                body = bodies.ChunkedBody(400).feed(body)
            fingerprint = fingerprint_of(request.method, request.target, body)
        certificate = self.downstream.transport.get_extra_info("peercert") or {}
        caller = repr(certificate.get("subjectAltName") or certificate.get("subject")).encode()  # the same when renewed
        scope = scope_of(self._idempotency_key, request.host, request.lines, caller)
        verdict, entry = self._memory.ask(scope, fingerprint, self._token)
        if verdict is Verdict.RUN:
            self._entry = entry
            if self._inbound.full:
                self._refuse(self._inbound.busy, undelivered=True)
                return
            self.cluster = self._app
            self.try_first()
        elif entry is not None and verdict is Verdict.WAIT:
            self._awaited = entry
            entry.waiting.append(self)
            self.downstream.deadline_s = self.listener.now() + self.listener.timeouts.first_byte_s
        elif entry is not None and entry.answer is not None and verdict is Verdict.REPLAY:
            self._replay(entry.answer)
        else:
            self._turn_away(verdict, entry.why if entry is not None else "")

    def _turn_away(self, verdict: Verdict, why: str = "") -> None:
        text = f"{verdict.text}: {why}" if why else verdict.text
        lines = () if self._token is None else (said(self._memory.token, verdict),)
        self._refuse(Refusal(verdict.status, "IX", text, lines), undelivered=verdict is Verdict.FULL)

    def _replay(self, answer: Answer) -> None:
        head = ResponseHead()
        head.status, head.bodiless = answer.status, answer.bodiless
        head.lines = [*answer.lines, _REPLAYED]
        head.length = framing.CHUNKED if answer.trailers else len(answer.body)
        if self.seen is not None:
            self.seen.flag = "IR"
        self._deliver(head, answer.body, True, list(answer.trailers))

    # The answer.

    def _deliver(self, head: ResponseHead, piece: bytes, done: bool, trailers: Headers) -> None:
        if self._entry is not None:
            self._head = ResponseHead()
            self._head.status, self._head.bodiless, self._head.lines = head.status, head.bodiless, head.lines
            self._write_down(piece, trailers)
        if self._token is not None:
            head.lines = [*head.lines, said(self._memory.token)]
        super()._deliver(head, piece, done, trailers)

    def response_piece(self, piece: bytes, done: bool, trailers: Headers) -> None:
        self._write_down(piece, trailers)
        if self._size > self._memory.bounds.answer_bytes_max and isinstance(self.downstream, Left):
            self._drop_try()  # nobody will ever see it
            self.downstream.finished(False, self.listener.now())
            return
        super().response_piece(piece, done, trailers)

    def _write_down(self, piece: bytes, trailers: Headers) -> None:
        if self._entry is None:
            return
        self._size += len(piece)
        if self._size > self._memory.bounds.answer_bytes_max:
            self._body.clear()
            self._lose("its answer was too large to be remembered")
            return
        self._body.append(piece)
        if trailers:
            self._trailers = trailers

    def _over(self, now: float) -> None:
        entry, head = self._entry, self._head
        if entry is not None and head is not None:
            self._entry = None
            answer = Answer(head.status, tuple(head.lines), head.bodiless, b"".join(self._body), tuple(self._trailers))
            for waiting in self._memory.finish(entry, answer, now):
                waiting.told(entry)
        super()._over(now)

    # Its ends.

    def told(self, entry: Entry[RememberedExchange]) -> None:
        """What was waited for is over."""
        self._awaited = None
        if entry.answer is not None:
            self._replay(entry.answer)
        elif entry.why:
            self._turn_away(Verdict.LOST, entry.why)
        else:
            self._refuse(Refusal(503, "UF", "the application could not be given the request"), undelivered=True)

    def _lose(self, why: str) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            for waiting in self._memory.lose(entry, why, self.listener.now()):
                waiting.told(entry)

    def _stop_waiting(self) -> None:
        entry, self._awaited = self._awaited, None
        if entry is not None and self in entry.waiting:
            entry.waiting.remove(self)

    def _refuse(self, refusal: Refusal, *, undelivered: bool = False) -> None:
        self._stop_waiting()
        entry = self._entry
        if entry is not None and undelivered:
            self._entry = None
            for waiting in self._memory.forget(entry):
                waiting.told(entry)
        else:
            self._lose(refusal.text)
        super()._refuse(refusal, undelivered=undelivered)

    def _cut_off(self, flag: str) -> None:
        self._lose("its answer broke off")
        super()._cut_off(flag)

    def client_lost(self) -> None:
        self._stop_waiting()
        if self._entry is not None and self.request_done and len(self._inbound.left) < LEFT_MAX:
            self._go_on_alone()
            return
        self._lose("its client left")
        super().client_lost()

    def _go_on_alone(self) -> None:
        """The application has the request, or will have it: its answer is for whoever asks again."""
        before, now = self.downstream, self.listener.now()
        before.exchange = None
        left = Left(self._inbound, before.peer)
        left.exchange = self
        left.deadline_s = before.deadline_s
        self.ends_s = min(self.ends_s, now + LEFT_S_MAX)
        self.downstream = left
        if self.seen is not None:
            self.seen.flag = "DC"
        if self.upstream is not None:
            self.upstream.resume_reading()

    def abandon(self) -> None:
        """The listener closes."""
        self._stop_waiting()
        self._lose("the sidecar was stopped")
        super().client_lost()

    def expired(self, now: float) -> None:
        if self._awaited is not None:
            self._turn_away(Verdict.BUSY)
        else:
            super().expired(now)
