"""Keys and values as JSON lines, the form that `homeport kv export` writes and `import` reads.

    {"key":"a/b","value":"text","create_revision":7,"mod_revision":9,"version":2,"lease":0}
    {"key_base64":"/w==","value_base64":"AP8=", ...}

Text where the bytes are UTF-8, base64 where they are not, so that any bytes come back as they were. Only key and value
are read; the rest is for people.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, NamedTuple

import msgspec

from homeport.client import InvalidArgument, KeyValue

_READ_BYTES: Final = 256 * 1024  # at a time
_CHUNKS_AHEAD: Final = 4  # read and not yet taken: the disk and the registry work at the same time
_LINE_BYTES_MAX: Final = 8 * 1024 * 1024  # a value of 1 MiB, every byte written as \u00XX, and what else is there


class Line(NamedTuple):
    """A key and its value, where they stood (counted from 1), and how many bytes were read up to there."""

    number: int
    read: int
    key: bytes
    value: bytes


def plain(entry: KeyValue) -> dict[str, object]:
    """An entry as JSON can hold it."""
    return {
        **plain_field("key", entry.key),
        **plain_field("value", entry.value),
        "create_revision": entry.create_revision,
        "mod_revision": entry.mod_revision,
        "version": entry.version,
        "lease": entry.lease,
    }


def plain_field(name: str, data: bytes) -> dict[str, object]:
    """Bytes under their name, or what they have to be called as base64."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": data}  # JSON has no bytes: msgspec writes base64


async def read_lines(descriptor: int) -> AsyncGenerator[Line, None]:
    """The lines that can be read from a file or pipe, which it takes over and closes; empty ones are passed over.

    Close it (`aclosing`) if it is left before its end.

    Raises:
        InvalidArgument: a line is none of ours; the message says which and why.
        OSError: the file cannot be read.
    """
    number, read, rest = 0, 0, b""
    async with aclosing(_chunks(descriptor)) as chunks:
        async for chunk in chunks:
            *whole, rest = (rest + chunk).split(b"\n")
            if not chunk:  # the end, and perhaps of a last line that nothing ended
                whole, rest = [rest], b""
            if len(rest) > _LINE_BYTES_MAX:
                raise _wrong(number + len(whole) + 1, f"longer than {_LINE_BYTES_MAX} bytes")
            for text in whole:
                number += 1
                read += len(text) + 1
                if text.strip():
                    yield Line(number, read, *_parsed(number, text))


class _Parsed(msgspec.Struct):
    key: str | None = None
    key_base64: bytes | None = None
    value: str | None = None
    value_base64: bytes | None = None


_DECODER: Final = msgspec.json.Decoder(_Parsed)


def _parsed(number: int, text: bytes) -> tuple[bytes, bytes]:
    try:
        line = _DECODER.decode(text)
        key = _one("key", line.key, line.key_base64)
        value = _one("value", line.value, line.value_base64)
    except (msgspec.DecodeError, ValueError) as error:
        raise _wrong(number, str(error)) from error
    if not key:
        raise _wrong(number, "the key is empty")
    return key, value


def _one(name: str, text: str | None, data: bytes | None) -> bytes:
    match text, data:
        case str(), None:
            return text.encode()
        case None, bytes():
            return data
        case _:
            raise ValueError(f"a line has either '{name}' or '{name}_base64'")


def _wrong(number: int, reason: str) -> InvalidArgument:
    return InvalidArgument(f"line {number}: {reason}", line=number)


async def _chunks(descriptor: int) -> AsyncGenerator[bytes, None]:
    """What comes in, an empty chunk at the end; read in a thread that holds up nobody when a pipe stays silent."""
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[bytes | OSError] = asyncio.Queue()  # bounded by `room`
    room = threading.Semaphore(_CHUNKS_AHEAD)
    wanted = True

    def read() -> None:
        chunk: bytes | OSError = b"begin"
        try:
            while chunk and not isinstance(chunk, OSError):
                room.acquire()
                if not wanted:
                    return
                try:
                    chunk = os.read(descriptor, _READ_BYTES)
                except OSError as error:
                    chunk = error
                loop.call_soon_threadsafe(came.put_nowait, chunk)
        except RuntimeError:  # the loop is closed: nobody waits for it any more
            return
        finally:
            os.close(descriptor)  # here, so that its number cannot become another file's while this thread reads it

    # Not the loop's executor: that is waited for at the end, however long nothing comes.
    threading.Thread(target=read, name="homeport reader", daemon=True).start()
    chunk: bytes | OSError = b"begin"
    try:
        while chunk:
            chunk = await came.get()
            if isinstance(chunk, OSError):
                raise chunk
            yield chunk
            room.release()
    finally:
        wanted = False
        room.release()
