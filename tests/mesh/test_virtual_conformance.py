"""One suite, two runners: what a protocol sees on the memory network is what it sees over real sockets.

Each scenario is a coroutine that returns what was observed. It runs on asyncio's selector loop over loopback and on the
virtual loop, and must observe the same, which is also written down here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from homeport.mesh.testing import run_virtual

Scenario = Callable[[], Coroutine[Any, Any, Any]]

PATIENCE_S = 20.0
BIG = bytes(range(256)) * 16_384  # 4 MiB, far more than any buffer on the way


def run_real(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(main)


@pytest.fixture(params=["real", "virtual-1", "virtual-2", "virtual-3"])
def run(request: pytest.FixtureRequest) -> Callable[[Scenario], Any]:
    def observe(scenario: Scenario) -> Any:
        async def within_patience() -> Any:
            async with asyncio.timeout(PATIENCE_S):
                return await scenario()

        if request.param == "real":
            return run_real(within_patience())
        return run_virtual(within_patience(), seed=int(request.param.removeprefix("virtual-")))

    return observe


class Recorder(asyncio.Protocol):
    """Writes down what it is told, and lets tests wait for it."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.events: list[str] = []
        self.received = bytearray()
        self.transport: asyncio.Transport
        self.made = asyncio.Event()
        self.eof = asyncio.Event()
        self.lost = asyncio.Event()
        self.changed = asyncio.Condition()
        self._keep_open = keep_open
        self._progress = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.events.append("made")
        self.made.set()

    def data_received(self, data: bytes) -> None:
        assert data
        self.received += data
        self._progress.set()

    def eof_received(self) -> bool:
        self.events.append("eof")
        self.eof.set()
        return self._keep_open

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")
        self._progress.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(f"lost {type(exc).__name__}" if exc else "lost")
        self.lost.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._progress.clear()
            await self._progress.wait()

    def outline(self) -> list[str]:
        """The events, each kind once: how often a writer pauses is the network's business."""
        return list(dict.fromkeys(self.events))


@contextlib.asynccontextmanager
async def pair(server_keeps_open: bool = False, client_keeps_open: bool = False) -> Any:
    loop = asyncio.get_running_loop()
    accepted: asyncio.Queue[Recorder] = asyncio.Queue()

    def accept() -> Recorder:
        recorder = Recorder(keep_open=server_keeps_open)
        accepted.put_nowait(recorder)
        return recorder

    server = await loop.create_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    _, client = await loop.create_connection(lambda: Recorder(keep_open=client_keeps_open), host, port)
    far = await accepted.get()
    await far.made.wait()
    try:
        yield client, far
    finally:
        for end in (client, far):
            if not end.lost.is_set():
                end.transport.abort()
            await end.lost.wait()
        server.close()
        await server.wait_closed()


def test_an_echo_comes_back_whole_and_in_order(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1_000):
                writer.write(data)
                await writer.drain()
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for number in range(500):
                writer.write(b"%d;" % number)
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        return answer

    assert run(scenario) == b"".join(b"%d;" % number for number in range(500))


def test_both_ends_tell_the_same_addresses(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async with pair() as (client, far):
            near_name, near_peer = (client.transport.get_extra_info(key) for key in ("sockname", "peername"))
            far_name, far_peer = (far.transport.get_extra_info(key) for key in ("sockname", "peername"))
            return near_name == far_peer, near_peer == far_name, near_name[0], near_peer[0], near_name != near_peer

    assert run(scenario) == (True, True, "127.0.0.1", "127.0.0.1", True)


def test_a_half_closed_stream_still_carries_the_answer(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async with pair(server_keeps_open=True) as (client, far):
            client.transport.write(b"question")
            client.transport.write_eof()
            with pytest.raises(RuntimeError):
                client.transport.write(b"more")
            await far.eof.wait()
            far.transport.write(b"answer")
            far.transport.close()
            await client.lost.wait()
            await far.lost.wait()
            return bytes(far.received), far.outline(), bytes(client.received), client.outline()

    assert run(scenario) == (b"question", ["made", "eof", "lost"], b"answer", ["made", "eof", "lost"])


def test_close_sends_what_is_buffered_first(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async with pair() as (client, far):
            client.transport.write(BIG)
            client.transport.close()
            client.transport.close()
            await far.lost.wait()
            await client.lost.wait()
            return bytes(far.received) == BIG, far.outline(), client.events.count("lost")

    assert run(scenario) == (True, ["made", "eof", "lost"], 1)


def test_no_data_arrives_after_close(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async with pair(client_keeps_open=True) as (client, far):
            far.transport.close()
            client.transport.write(b"too late")
            await far.lost.wait()
            return bytes(far.received), far.outline()

    assert run(scenario) == (b"", ["made", "lost"])


def test_a_writer_is_paused_while_its_peer_does_not_read(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async with pair() as (client, far):
            far.transport.pause_reading()
            client.transport.write(BIG * 4)
            paused = "pause" in client.events and client.transport.get_write_buffer_size() > 65_536
            reading, received = far.transport.is_reading(), len(far.received)
            far.transport.resume_reading()
            await far.until(lambda: len(far.received) == len(BIG) * 4)
            await client.until(lambda: "resume" in client.events)
            return paused, reading, received, client.outline(), bytes(far.received) == BIG * 4

    assert run(scenario) == (True, False, 0, ["made", "pause", "resume"], True)


def test_the_end_is_not_seen_before_the_data(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async with pair() as (client, far):
            far.transport.pause_reading()
            client.transport.write(b"last words")
            client.transport.close()
            await client.lost.wait()
            before = far.outline()
            far.transport.resume_reading()
            await far.lost.wait()
            return before, bytes(far.received), far.outline()

    assert run(scenario) == (["made"], b"last words", ["made", "eof", "lost"])


def test_abort_is_a_close_that_forgets_the_buffer(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async with pair() as (client, far):
            far.transport.pause_reading()
            client.transport.write(BIG * 4)
            client.transport.abort()
            client.transport.abort()
            await client.lost.wait()
            far.transport.resume_reading()
            await far.lost.wait()
            return len(far.received) < len(BIG) * 4, far.outline(), client.outline(), client.events.count("lost")

    assert run(scenario) == (True, ["made", "eof", "lost"], ["made", "pause", "lost"], 1)


def test_closing_with_unread_input_resets_the_peer(run: Callable[[Scenario], Any]) -> None:
    class Impatient(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.close()

    async def scenario() -> Any:
        loop = asyncio.get_running_loop()
        far = Impatient()
        server = await loop.create_server(lambda: far, "127.0.0.1", 0)
        transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        transport.write(BIG)
        await client.lost.wait()
        await far.lost.wait()
        server.close()
        return client.outline()[-1] in ("lost ConnectionResetError", "lost BrokenPipeError"), far.outline()

    assert run(scenario) == (True, ["made", "lost"])


def test_writing_to_a_vanished_peer_breaks_the_connection(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async with pair(client_keeps_open=True) as (client, far):
            far.transport.abort()
            await client.eof.wait()
            while not client.lost.is_set():
                client.transport.write(b"anybody there?")
                await asyncio.wait([asyncio.ensure_future(client.lost.wait())], timeout=0.05)
            client.transport.write(b"dropped without a word")
            return client.outline()

    assert run(scenario) == ["made", "eof", "lost BrokenPipeError"]


def test_drain_raises_when_the_peer_vanished(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            writer.transport.abort()

        async with await asyncio.start_server(vanish, "127.0.0.1", 0) as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())

            async def write_on() -> None:
                while True:
                    writer.write(BIG)
                    await writer.drain()

            with pytest.raises(ConnectionError):
                await write_on()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    run(scenario)


def test_connecting_where_nobody_listens_is_refused(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        server.close()
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Recorder, host, port)
        return server.is_serving(), server.sockets

    assert run(scenario) == (False, ())


def test_a_port_is_bound_once_and_free_again_after_close(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        with pytest.raises(OSError, match="address already in use"):
            await loop.create_server(Recorder, host, port)
        server.close()
        await server.wait_closed()
        again = await loop.create_server(Recorder, host, port)
        again.close()
        await again.wait_closed()

    run(scenario)


def test_a_server_that_was_not_started_refuses(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, "127.0.0.1", 0, start_serving=False)
        address = server.sockets[0].getsockname()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Recorder, *address)
        await server.start_serving()
        transport, client = await loop.create_connection(Recorder, *address)
        transport.close()
        await client.lost.wait()
        server.close()
        return client.outline()

    assert run(scenario) == ["made", "lost"]


def test_a_buffered_protocol_gets_the_stream_in_its_own_buffer(run: Callable[[Scenario], Any]) -> None:
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer = bytearray(100)
            self.received = bytearray()
            self.lost = asyncio.Event()

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.received += self.buffer[:nbytes]

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set()

    async def scenario() -> Any:
        loop = asyncio.get_running_loop()
        far = Buffered()
        server = await loop.create_server(lambda: far, "127.0.0.1", 0)
        transport, _ = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        transport.writelines([b"x" * 5_000, b"", b"y" * 5_000])
        transport.close()
        await far.lost.wait()
        server.close()
        return bytes(far.received)

    assert run(scenario) == b"x" * 5_000 + b"y" * 5_000


def test_a_protocol_that_raises_loses_its_connection_and_the_loop_is_told(run: Callable[[Scenario], Any]) -> None:
    class Careless(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ValueError("I did not expect that")

    async def scenario() -> Any:
        loop = asyncio.get_running_loop()
        told: list[Any] = []
        loop.set_exception_handler(lambda _, context: told.append(repr(context["exception"])))
        far = Careless()
        server = await loop.create_server(lambda: far, "127.0.0.1", 0)
        transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        transport.write(b"x")
        await client.lost.wait()
        server.close()
        return told, far.outline(), client.outline()

    assert run(scenario) == (
        ["ValueError('I did not expect that')"],
        ["made", "lost ValueError"],
        ["made", "eof", "lost"],
    )


def test_a_transport_changes_hands_without_losing_a_byte(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async with pair() as (client, far):
            far.transport.pause_reading()
            client.transport.write(b"for the second")
            second = Recorder()
            far.transport.set_protocol(second)
            changed = far.transport.get_protocol() is second
            far.transport.resume_reading()
            await second.until(lambda: len(second.received) == 14)
            far.transport.set_protocol(far)
            return changed, bytes(far.received), bytes(second.received)

    assert run(scenario) == (True, b"", b"for the second")


def test_water_marks_follow_asyncio(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async with pair() as (client, _):
            transport = client.transport
            seen = [transport.get_write_buffer_limits()]
            for limits in ({"high": 100}, {"low": 100}, {"high": 0}, {}):
                transport.set_write_buffer_limits(**limits)
                seen.append(transport.get_write_buffer_limits())
            with pytest.raises(ValueError, match="must be >= low"):
                transport.set_write_buffer_limits(high=1, low=2)
            return seen

    assert run(scenario) == [(16_384, 65_536), (25, 100), (100, 400), (0, 0), (16_384, 65_536)]


def test_text_cannot_be_written(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        async with pair() as (client, _):
            with pytest.raises(TypeError, match="bytes-like"):
                client.transport.write("text")

    run(scenario)


def test_unix_sockets_carry_streams(run: Callable[[Scenario], Any], tmp_path: Any) -> None:
    async def scenario() -> Any:
        loop = asyncio.get_running_loop()
        path = str(tmp_path / "socket")
        with pytest.raises(FileNotFoundError):
            await loop.create_unix_connection(Recorder, path)
        far = Recorder()
        server = await loop.create_unix_server(lambda: far, path)
        transport, client = await loop.create_unix_connection(Recorder, path)
        transport.write(b"hello")
        transport.close()
        await far.lost.wait()
        names = server.sockets[0].getsockname() == path, transport.get_extra_info("peername") == path
        server.close()
        return names, bytes(far.received), client.outline(), far.outline()

    assert run(scenario) == ((True, True), b"hello", ["made", "lost"], ["made", "eof", "lost"])


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self.errors: asyncio.Queue[Exception] = asyncio.Queue()
        self.lost = asyncio.Event()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.errors.put_nowait(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


def test_datagrams_arrive_whole_with_their_sender(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        loop = asyncio.get_running_loop()
        near, server = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
        address = near.get_extra_info("sockname")
        far, client = await loop.create_datagram_endpoint(Datagrams, remote_addr=address)
        far.sendto(b"question")
        data, sender = await server.received.get()
        near.sendto(data + b"!", sender)
        answer, answerer = await client.received.get()
        same = sender == far.get_extra_info("sockname"), answerer == address
        near.close()
        await server.lost.wait()
        far.sendto(b"nobody there")
        error = await client.errors.get()
        far.close()
        await client.lost.wait()
        return answer, same, type(error).__name__

    assert run(scenario) == (b"question!", (True, True), "ConnectionRefusedError")


def test_too_large_a_datagram_is_an_error_of_its_sender(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        loop = asyncio.get_running_loop()
        near, sender = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
        near.sendto(b"x" * 65_508, near.get_extra_info("sockname"))
        error = await sender.errors.get()
        near.close()
        return isinstance(error, OSError)

    assert run(scenario) is True


def test_the_tools_of_asyncio_work(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        loop = asyncio.get_running_loop()
        seen: list[Any] = []
        queue: asyncio.Queue[int] = asyncio.Queue(1)

        async def produce() -> None:
            for number in range(3):
                await queue.put(number)

        async def fail() -> None:
            await asyncio.sleep(0.01)
            raise ValueError

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            seen += [await queue.get() for _ in range(3)]
        siblings: list[asyncio.Task[None]] = []

        async def fail_together() -> None:
            async with asyncio.TaskGroup() as group:
                siblings.append(group.create_task(asyncio.sleep(1_000)))
                group.create_task(fail())

        with pytest.raises(ExceptionGroup):
            await fail_together()
        seen.append(siblings[0].cancelled())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        seen.append(await asyncio.to_thread(sum, [1, 2, 3]))
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)
        done, pending = await asyncio.wait(
            [asyncio.ensure_future(answer) for answer in (asyncio.sleep(0.01, "soon"), asyncio.sleep(1_000))],
            return_when=asyncio.FIRST_COMPLETED,
        )
        seen += [task.result() for task in done]
        for task in pending:
            task.cancel()
        seen.append(await asyncio.gather(asyncio.sleep(0.02, "a"), asyncio.sleep(0.01, "b")))
        return seen

    assert run(scenario) == [0, 1, 2, True, 6, "soon", ["a", "b"]]


def test_localhost_and_literal_addresses_resolve(run: Callable[[Scenario], Any]) -> None:
    async def scenario() -> Any:
        ask: Callable[..., Awaitable[Any]] = asyncio.get_running_loop().getaddrinfo
        answers = [
            await ask("localhost", 80, family=socket.AF_INET, type=socket.SOCK_STREAM),
            await ask("127.0.0.1", 80, type=socket.SOCK_STREAM),
            await ask("::1", "80", type=socket.SOCK_STREAM),
            await ask("0.0.0.0", None, type=socket.SOCK_STREAM),
        ]
        return [(answer[0][0], answer[0][4]) for answer in answers]

    assert run(scenario) == [
        (socket.AF_INET, ("127.0.0.1", 80)),
        (socket.AF_INET, ("127.0.0.1", 80)),
        (socket.AF_INET6, ("::1", 80, 0, 0)),
        (socket.AF_INET, ("0.0.0.0", 0)),
    ]
