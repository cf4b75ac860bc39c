"""An upstream answers anything: each request of the client gets one answer at most, and a broken one never looks whole.

The first byte of a case says how it is cut into pieces and which requests the client has sent; the rest is what the
upstream sends on its first connection, whoever asks.
"""

from __future__ import annotations

from tests.fuzz.targets.http1 import Proxy, Wire, answers

GET = b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n"
CLIENTS = (
    ([b"GET", b"GET"], GET * 2),
    ([b"HEAD", b"GET"], GET.replace(b"GET", b"HEAD") + GET),
    ([b"GET"], GET.replace(b"1.1", b"1.0")),
    ([b"GET"], GET.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")),
    ([b"POST"], b"POST / HTTP/1.1\r\nHost: orders\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\nhalf"),
)


def one(data: bytes) -> None:
    """Run one case."""
    if not data:
        return
    mode, sent = data[0], data[1:]
    methods, asked = CLIENTS[mode % len(CLIENTS)]
    piece_size = (len(sent) or 1) if mode & 128 else mode // 8 + 1
    proxy = Proxy()

    def connected(wire: Wire) -> None:
        first = len(proxy.loop.upstreams) == 1
        begun = False

        def heard() -> None:
            nonlocal begun
            if begun:
                return
            begun = True
            for at in range(0, len(sent) if first else 0, piece_size):
                wire.feed(sent[at : at + piece_size])
            if first:
                wire.feed_eof()
            else:
                wire.lose()

        wire.heard = heard

    proxy.loop.connected = connected
    proxy.client.feed(asked)
    proxy.end()
    got = answers(bytes(proxy.client.sent), list(methods))
    for message in got[:-1]:
        assert message.body is not None, "an answer after one that had not ended"
        assert message.framed, "an answer after one that only the end of the connection ends"
