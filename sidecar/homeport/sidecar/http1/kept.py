"""A failed answer, held back while another try may bring a better one.

Strategy: it keeps its seat and its connection, and reads on beside the next try, as much as may be held. So the client
need not wait for the end of an answer that it may never get, and when no other try does better, there is an answer to
give: whole, or what there is of it and then the rest as it comes.
"""

from __future__ import annotations

from homeport.sidecar.http1.attempt import Attempt
from homeport.sidecar.http1.framing import ResponseHead
from homeport.sidecar.http1.lines import Headers, Malformed


class Kept(Attempt):
    """The answer to what `attempt` has sent; takes over its seat and its connection."""

    def __init__(self, attempt: Attempt, head: ResponseHead) -> None:
        super().__init__(attempt.downstream, attempt.request)
        self.cluster = attempt.cluster
        self.request_done = attempt.request_done
        self.head = head
        self.pieces: list[bytes] = []
        self.size = 0
        self.trailers: Headers = []
        self.whole = False
        self.swap_seats(attempt)

    @property
    def usable(self) -> bool:
        """Whether the client can be given it: all of it is here, or the rest may still come.

        The rest of an answer that came before the request's end may depend on what was sent elsewhere since.
        """
        return self.whole or (self.upstream is not None and self.request_done)

    def response_piece(self, piece: bytes, done: bool, trailers: Headers) -> None:
        """More of its body."""
        self.pieces.append(piece)
        self.size += len(piece)
        if done:
            self.trailers = trailers
            self.whole = True
            if self.upstream is not None:
                self._give_back(self.listener.now())
        elif self.upstream is not None and self.size > self.listener.limits.replay_bytes:
            self.upstream.pause_reading()

    def drop(self) -> None:
        """It is not wanted."""
        self._drop_try()

    def upstream_lost(self) -> None:
        """It will never be whole, and a part of it is worth less than an answer of our own."""
        self._drop_try()

    def upstream_malformed(self, error: Malformed) -> None:
        self._drop_try()

    def upstream_full(self) -> None:
        """Nothing more is sent there."""

    def upstream_drained(self) -> None:
        """Nothing more is sent there."""
