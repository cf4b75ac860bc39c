"""What follows a CONNECT or a 101: two connections that pass bytes of another protocol on, in both directions."""

from __future__ import annotations

import asyncio

from homeport.sidecar.http1 import framing
from homeport.sidecar.http1.framing import ResponseHead
from homeport.sidecar.http1.hedged import Hedged
from homeport.sidecar.http1.lines import Malformed
from homeport.sidecar.http1.upstream import Upstream


class Tunnels(Hedged):
    """The part of an exchange that may become a tunnel."""

    _ends = 0  # of a tunnel's two directions, those that have ended

    def _connected(self, upstream: Upstream) -> None:
        """CONNECT: what a connection is opened for is all that it is used for."""
        assert self.cluster is not None
        self.cluster.requests[2] += 1
        if self.seen is not None:
            self.seen.status = 200
        self.upstream = upstream
        upstream.exchange = self
        self._begin_tunnel(upstream, b"HTTP/1.1 200 Connection established\r\n%b\r\n\r\n" % self.listener.via_line)

    def switched(self, head: ResponseHead, rest: bytes) -> None:
        """A 101: both connections become a tunnel, if the client asked for it."""
        upstream, cluster = self.upstream, self.cluster
        assert upstream is not None
        assert cluster is not None
        if not self.request.upgrade or head.upgrade != self.request.upgrade:
            self.upstream_malformed(Malformed(502, "it switched to a protocol that nobody asked for"))
            return
        cluster.requests[1] += 1
        if self.seen is not None:
            self.seen.status = 101
        lines = [
            framing.STATUS_LINES[101],
            *head.lines,
            *self.listener.response_lines(head),
            b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade,
            rest,
        ]
        self._begin_tunnel(upstream, b"\r\n".join(lines))

    def _begin_tunnel(self, upstream: Upstream, answer: bytes) -> None:
        self.tunnel = upstream.tunnel = self.begun = True
        self.listener.tunnels += 1
        if self._aside:
            self._clear()
        self.tunnel_data(self.downstream.transport, answer)
        ahead = self.downstream.take_buffer()
        if ahead:
            self.tunnel_data(upstream.transport, ahead)
        if self.downstream.ended:
            self.client_ended_tunnel()

    def tunnel_data(self, onward: asyncio.Transport, data: bytes) -> None:
        """Bytes of the other protocol, in either direction."""
        self.downstream.deadline_s = self.listener.now() + self.listener.timeouts.tunnel_s
        if self.seen is not None:
            if onward is self.downstream.transport:
                self.seen.bytes_out += len(data)
            else:
                self.seen.bytes_in += len(data)
        self.listener.outbox.write(onward, data)

    def client_ended_tunnel(self) -> None:
        """The client will send no more; the other direction goes on."""
        self._ends += 1
        upstream = self.upstream
        if upstream is None or upstream.transport.is_closing():
            return
        if self._ends == 2 or upstream.tls:
            self._end_tunnel(upstream)
        else:
            self.listener.outbox.flush()
            upstream.transport.write_eof()

    def upstream_ended_tunnel(self, upstream: Upstream) -> None:
        """The upstream will send no more; the other direction goes on."""
        self._ends += 1
        if self._ends == 2 or self.downstream.tls:
            self._end_tunnel(upstream)
        else:
            self.downstream.end_writing()

    def tunnel_over(self, now: float) -> None:
        """The upstream's end is gone, or both have been silent for too long."""
        self._drop_try()
        self.listener.tunnels -= 1
        self.downstream.close(now)
        self.downstream.finished(False, now)

    def _end_tunnel(self, upstream: Upstream) -> None:
        """Send what is unsent and close; the end of the upstream's connection then ends the exchange."""
        self.listener.outbox.flush()
        self.downstream.deadline_s = self.listener.now() + self.listener.timeouts.flush_s
        upstream.transport.close()
