"""A new process takes over from a running one: it gets the listening sockets, the old one finishes what it has begun.

    new -> old   a line that names this protocol
    old -> new   how many sockets each listener has, one JSON object, with the sockets themselves (SCM_RIGHTS)
                 and, if one message cannot carry all of them, a "+" with the next ones
    new -> old   "ready": the new one accepts
    old -> new   "yes": the old one stops accepting and drains; or "no": another one was faster, or this one too slow

The sockets are shared until the old process closes its copies, so there is no moment at which nobody accepts, and what
waits in a backlog is accepted by whoever is left. If the new one dies before it says "ready", nothing has changed.
Only this machine's same user is let in: the socket's directory entry is theirs alone, and the kernel is asked too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from homeport.client.core.errors import HomeportError
from homeport.sidecar.sockets import is_bound_to

_log = logging.getLogger("homeport.sidecar")

HELLO: Final = b"homeport takeover 1\n"
READY: Final = b"ready\n"
YES: Final = b"yes\n"
NO: Final = b"no\n"
SOCKETS_MAX: Final = 250  # in one message; the kernel passes at most 253
_REPLY_BYTES_MAX: Final = 256 * 1024  # some thousand names of local ports
_REPLY_S: Final = 5.0  # for the old one to hand over; it does nothing else meanwhile
_READY_S: Final = 30.0  # for the new one to start its workers

Sockets = dict[str, list[socket.socket]]
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Counts: Final = msgspec.json.Decoder(dict[str, _Count])  # its errors are ValueErrors


class TakeoverError(HomeportError):
    """Nothing was taken over; the message says why, and the old process, if there is one, goes on."""


class Handover:
    """The old side: waits at `path` for a successor.

    Args:
        sockets: Returns the listening sockets by listener, as they are now.
        leave: Called once the successor accepts: stop accepting, let what is under way come to its end.
    """

    def __init__(
        self, path: Path, sockets: Callable[[], Mapping[str, Sequence[socket.socket]]], leave: Callable[[], None]
    ) -> None:
        self._path = path
        self._sockets = sockets
        self._leave = leave
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._left = False

    async def start(self) -> None:
        """Listen, in the place of whoever listened there before.

        Raises:
            OSError: the socket cannot be made there.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        beside.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        try:
            with _reached(beside) as address:
                listening.bind(address)
            self._server = await asyncio.start_unix_server(self._asked, sock=listening)
        except BaseException:
            listening.close()
            raise
        beside.chmod(0o600)
        self._inode = beside.stat().st_ino
        beside.replace(self._path)

    async def close(self) -> None:
        """Stop waiting. The entry is removed unless a successor has put its own there."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting = False
        try:
            async with asyncio.timeout(_READY_S):
                if not _same_user(writer) or await reader.readline() != HELLO or self._left:
                    return
                self._hand_over(writer)
                waiting = True
                if await reader.readline() != READY:
                    return
                waiting = False
                writer.write(self._succeeded())
        except (OSError, TimeoutError, ValueError) as error:
            _log.warning("a takeover came to nothing: %r", error)
        finally:
            if waiting:  # whoever gets ready after all must not believe that we are gone
                writer.write(NO)
            writer.close()

    def _succeeded(self) -> bytes:
        """A successor is ready: leave, unless another one was; return what to tell it."""
        if self._left:
            return NO
        self._left = True
        _log.warning("another process has taken over; finishing what is under way")
        self._leave()
        return YES

    def _hand_over(self, writer: asyncio.StreamWriter) -> None:
        sockets = self._sockets()
        reply = json.dumps({name: len(listening) for name, listening in sockets.items()}).encode() + b"\n"
        handed = [each.fileno() for listening in sockets.values() for each in listening]
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as raw:
            # At once: nothing else was ever written to this connection.
            socket.send_fds(raw, [reply], handed[:SOCKETS_MAX])
            for at in range(SOCKETS_MAX, len(handed), SOCKETS_MAX):
                socket.send_fds(raw, [b"+"], handed[at : at + SOCKETS_MAX])


@contextlib.contextmanager
def _reached(path: Path) -> Iterator[str]:
    """A name for `path` that fits into a socket's address, 107 bytes: a state directory may be deeper than that."""
    if sys.platform != "linux":
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _same_user(writer: asyncio.StreamWriter) -> bool:
    peer = writer.get_extra_info("socket")
    if not hasattr(socket, "SO_PEERCRED"):  # not Linux: the entry's mode must do
        return True
    _pid, uid, _gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(uid == os.geteuid())


class Taken:
    """The new side's hold on a takeover: `sockets` are ours; say `ready` once somebody accepts from them."""

    def __init__(self, connection: socket.socket, sockets: Sockets) -> None:
        self._connection = connection
        self.sockets = sockets

    def matching(self, wanted: Mapping[str, str]) -> Sockets:
        """The sockets of listeners that are wanted at the same address; the others are closed."""
        for name, listening in list(self.sockets.items()):
            if name not in wanted or not is_bound_to(listening[0], wanted[name]):
                for each in self.sockets.pop(name):
                    each.close()
        return self.sockets

    async def ready(self) -> None:
        """The old process may leave. It has, if it is gone already.

        Raises:
            TakeoverError: another successor was faster, or the old process waits no longer; the sockets are theirs.
        """
        if await asyncio.get_running_loop().run_in_executor(None, self._say_ready) == NO:
            raise TakeoverError(
                f"another process has taken over meanwhile, or this one took over {_READY_S:g} s to start"
            )

    def _say_ready(self) -> bytes:
        with self._connection:
            with contextlib.suppress(OSError):
                self._connection.sendall(READY)
            with contextlib.suppress(OSError):  # also if it has hung up: its last word may be a no
                return self._connection.recv(len(YES))
        return b""

    def give_up(self) -> None:
        """Nothing has happened: the old process goes on."""
        self._connection.close()
        for listening in self.sockets.values():
            for each in listening:
                each.close()


async def take_over(path: Path) -> Taken:
    """Get the sockets of the process that waits at `path`; it goes on accepting until `Taken.ready`.

    Raises:
        TakeoverError: nobody is there, or what they say is not understood.
    """
    return await asyncio.get_running_loop().run_in_executor(None, _ask, path)


def _ask(path: Path) -> Taken:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_REPLY_S)
    try:
        with _reached(path) as address:
            connection.connect(address)
        connection.sendall(HELLO)
        return Taken(connection, _received(connection))
    except OSError as error:
        connection.close()
        raise TakeoverError(f"there is nobody at {path} to take over from: {error}") from None
    except ValueError as error:
        connection.close()
        raise TakeoverError(f"whoever is at {path} does not hand over: {error}") from None


def _received(connection: socket.socket) -> Sockets:
    """What the old process hands over.

    Raises:
        OSError: the connection broke.
        ValueError: it is not what it should be.
    """
    reply, received = b"", list[socket.socket]()
    try:
        counts: dict[str, int] | None = None
        while counts is None or sum(counts.values()) > len(received):
            data, fds, _flags, _address = socket.recv_fds(connection, _REPLY_BYTES_MAX, SOCKETS_MAX)
            received += [socket.socket(fileno=fd) for fd in fds]
            reply += data
            if not data or len(reply) > _REPLY_BYTES_MAX:
                break
            if counts is None and b"\n" in reply:
                counts = _Counts.decode(reply.partition(b"\n")[0])
        if counts is None or sum(counts.values()) != len(received):
            raise ValueError(f"{len(received)} sockets came with {reply[:80]!r}")
    except BaseException:
        for each in received:
            each.close()
        raise
    for each in received:
        each.setblocking(False)
        each.set_inheritable(False)  # which children get which is said where they are started
    left = iter(received)
    return {name: [next(left) for _ in range(count)] for name, count in counts.items()}
