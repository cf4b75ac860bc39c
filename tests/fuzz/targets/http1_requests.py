"""A client sends anything: the upstream sees what the client has sent, request by request, and never one more.

The first byte of a case says how it is cut into pieces and how the upstream answers; the rest is what the client sends.
"""

from __future__ import annotations

from tests.fuzz.targets.http1 import Message, Proxy, Wire, requests

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


def one(data: bytes) -> None:
    """Run one case."""
    if not data:
        return
    mode, sent = data[0], data[1:]
    seen = proxied(sent, piece_size=(len(sent) or 1) if mode & 1 else mode // 4 + 1, switches=bool(mode & 2))
    expected = iter([_line(message) for message in requests(sent)])
    for message in seen:
        assert any(_line(message) == each for each in expected), f"the client never sent {message!r}"


def proxied(sent: bytes, *, piece_size: int, switches: bool = False) -> list[Message]:
    """What the upstream sees of what a client sends, and the end of both."""
    proxy = Proxy()
    seen: list[Message] = []

    def connected(wire: Wire) -> None:
        answered = 0
        tunnel = False

        def heard() -> None:
            nonlocal answered, tunnel
            if tunnel:
                return
            found = requests(bytes(wire.sent))
            tunnel = b" 200 Connection established\r\n" in proxy.client.sent
            assert tunnel or len(found) <= answered + 1, "two requests, and no answer to the first yet"
            for message in found[answered:]:
                if message.body is not None:
                    answered += 1
                    seen.append(message)
                    tunnel = switches and b"\r\nUpgrade: websocket\r\n" in wire.sent
                    wire.feed(SWITCHED if tunnel else OK)

        wire.heard = heard

    proxy.loop.connected = connected
    for at in range(0, len(sent), piece_size):
        proxy.client.feed(sent[at : at + piece_size])
        proxy.loop.settle()
    proxy.client.feed_eof()
    proxy.end()
    return seen


def _line(message: Message) -> tuple[bytes, bytes, bytes | None]:
    method, _, rest = message.first.partition(b" ")
    target = rest.rpartition(b" ")[0]
    if target[:7].lower() == b"http://":  # an absolute target loses its authority on the way
        host, query, after = target[7:].partition(b"?")
        path = b"/" + host.partition(b"/")[2]
        target = path + query + after
    return method, target, message.body
