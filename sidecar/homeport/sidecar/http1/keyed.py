"""A request that must not run twice, on its way out: it bears a key, and may be sent again where that is remembered.

Strategy: while nothing of it can have been delivered, it is an ordinary request. After a try that may have been, only
the same endpoint may tell, and only if its inbound remembers: it is asked again, with what was known of its memory
before the first try (`core.idempotency`), and answers with the first one's answer, or by running it for the first time,
or that nobody knows. The last is what a client would have been told without any key: 502.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from homeport.sidecar.core import limits
from homeport.sidecar.core.idempotency import KEY_HEADER, META, NO_TOKEN, TOKEN_HEADER, Verdict, has_key, heard
from homeport.sidecar.core.retries import Failure
from homeport.sidecar.core.routes import Refusal
from homeport.sidecar.http1.framing import ResponseHead
from homeport.sidecar.http1.lines import Headers
from homeport.sidecar.http1.routed import RoutedExchange
from homeport.sidecar.http1.upstream import Cluster, Endpoint, Upstream

TOKENS_MAX: Final = 3  # new tokens that one request takes: a memory that forgets faster is of no use
_UNANSWERED: Final = frozenset({Failure.STALE, Failure.RESET, Failure.TIMEOUT})
_NEVER_AGAIN: Final = frozenset({Failure.STATUS, Failure.GONE})  # there is an answer; the one who knows is leaving


class KeyedExchange(RoutedExchange):
    """See the module; for POST and PATCH, whose service may or may not ask for keys."""

    _keyed = False
    _token = b""  # what was known of the memory before the first try that may have been delivered
    _tokens = 0
    _plainly = False  # sent once only: where it went, nothing is remembered, or not for long enough
    _remembered = False  # the try under way goes to where it is remembered, with a token
    _only: Endpoint | None = None  # who may have it already, and so the only one that may get it again

    def _prepare(self, cluster: Cluster) -> None:
        if cluster.settings.idempotency is None:
            return
        self._keyed = True
        if not has_key(self.request.lines):
            self._outbound.keys_given += 1
            key = UUID(int=self.listener.rng.randrange(1 << 128), version=4)
            self.request.lines = [*self.request.lines, b'%b: "%b"' % (KEY_HEADER, str(key).encode())]

    @property
    def _can_be_repeated(self) -> bool:
        """Whether all of the body is, or will be, held."""
        whole = self.request_done or 0 <= self.request.length <= self.listener.limits.replay_bytes
        return whole and self._held is not None

    def _send(self, upstream: Upstream, now: float) -> None:
        endpoint, plain = upstream.endpoint, self._wire
        if self._only is None:
            says_so = self._keyed and not self._plainly and endpoint.instance.meta.get(META) == "true"
            self._remembered = says_so and self._can_be_repeated
            self._token = endpoint.memory_token
        if self._remembered:  # for `_only`, whatever it says of itself by now: who does not remember refuses a token
            self._wire = b"%b%b: %b\r\n\r\n" % (plain[:-2], TOKEN_HEADER, self._token)
        super()._send(upstream, now)
        self._wire = plain

    def _meaning(self, failure: Failure) -> Failure:
        """What a failed try means: no inbound runs what is sent with no token at all."""
        cannot_have_run = self._remembered and self._token == NO_TOKEN and failure in _UNANSWERED
        return Failure.UNDELIVERED if cannot_have_run else failure

    def _may_retry(self, failure: Failure) -> bool:
        failure = self._meaning(failure)
        if not (self._remembered and failure.delivered):
            return super()._may_retry(failure)
        most = limits.RETRIES_MAX if failure is Failure.STALE else self.retries_max
        if failure in _NEVER_AGAIN or self._held is None or self._retries >= most:
            return False
        assert self.cluster is not None
        return self.cluster.may_afford(failure, self.listener.now())

    def _next(self, failure: Failure) -> Endpoint | None:
        meant, last = self._meaning(failure), self._tried[-1]
        if self._only is None and self._remembered and meant.delivered:
            self._only = last
            self._drop_kept()  # what others said before: that they never got it, which is not the whole truth any more
        if self._only is not None:
            return self._only if not self._only.gone and self._may_retry(failure) else None
        following = super()._next(meant)
        if following is None and meant is not failure and self._may_retry(failure) and not last.gone:
            following = last  # not its fault, and there is nobody else
        return following

    def _may_move(self, endpoint: Endpoint) -> bool:
        return self._only is None and super()._may_move(endpoint)

    def _try_again(self, endpoint: Endpoint, failure: Failure) -> None:
        if endpoint is self._only:
            self._outbound.keyed_retries += 1
        super()._try_again(endpoint, failure)

    def response(self, head: ResponseHead, piece: bytes, done: bool, trailers: Headers) -> None:
        if self._remembered:
            verdict = self._heard(head)
            if self._only is not None and (verdict is not None or self.failure_of(head) is Failure.UNDELIVERED):
                self._told_nothing(verdict)
                return
            if verdict is Verdict.STALE:
                self._take_token(head, done)
                return
        super().response(head, piece, done, trailers)

    def _heard(self, head: ResponseHead) -> Verdict | None:
        for name, value in head.mesh:
            if name == TOKEN_HEADER:
                assert self.endpoint is not None
                self.endpoint.memory_token, verdict = heard(value)
                return verdict
        return None

    def _take_token(self, head: ResponseHead, done: bool) -> None:
        """Nothing was run, and what we knew was old: send it with what we know now."""
        endpoint, now = self.endpoint, self.listener.now()
        assert endpoint is not None
        self._tokens += 1
        self._plainly = self._tokens > TOKENS_MAX or endpoint.memory_token == NO_TOKEN
        self.reusable = head.keep_alive
        if done:
            self._give_back(now)
        else:
            self._drop_try()
        self._try(endpoint, now, fresh=False)

    def _told_nothing(self, verdict: Verdict | None) -> None:
        """A retry was turned away: the first try's outcome stays unknown, unless there is time to ask again."""
        if verdict is None:
            self._failed(Failure.UNDELIVERED, "its inbound is too busy")
        elif verdict is Verdict.BUSY:
            self._refuse(Refusal(504, "UT", f"upstream: {verdict.text}"))
        else:
            self._refuse(Refusal(502, "UC", f"upstream: {verdict.text}"))

    def _refuse(self, refusal: Refusal, *, undelivered: bool = False) -> None:
        if self._only is not None and refusal.status == 503:  # which would say that it never got anywhere
            refusal = Refusal(502, "UC", f"{refusal.text}; an earlier try may have been carried out")
        super()._refuse(refusal, undelivered=undelivered)
