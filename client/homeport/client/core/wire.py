"""MessagePack-RPC: the only file that knows MessagePack.

The published framing: `[0, msgid, method, params]` asks, `[1, msgid, error, result]` answers, `[2, method, params]`
tells. Messages follow each other on the stream without a length in front, so `msgpack.Unpacker` walks the bytes to
find where each ends, and msgspec turns exactly those bytes into types. Results and events may be passed in already
encoded, which is how one encoding serves every reader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar, cast

import msgpack
import msgspec

from homeport.client.core.errors import HomeportError, InvalidArgument, LimitExceeded, ProtocolError, from_wire, to_wire
from homeport.client.core.messages import Notice, Request

FRAME_BYTES_MAX: Final = 2 * 1024 * 1024  # a 1 MiB value with its key and envelope, and room for a page of others
_CHUNK_BYTES_MAX: Final = 64 * 1024 * 1024  # what a transport may hand over at once; real ones give 256 KiB
MSGID_MAX: Final = 0xFFFF_FFFF

T = TypeVar("T")
encode: Final = msgspec.msgpack.Encoder().encode

ASK: Final = 0
ANSWER: Final = 1
TELL: Final = 2


class Splitter:
    """Cuts a byte stream into whole MessagePack messages, whatever the chunks it arrives in."""

    __slots__ = ("_bytes_max", "_cut", "_tail", "_unpacker")

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._cut = 0  # stream offset where the last whole message ended, and the tail begins
        self._tail = bytearray()
        # It only skips; the limits are set all the same, so that no other use of it could be unbounded.
        self._unpacker: msgpack.Unpacker | None = msgpack.Unpacker(
            max_buffer_size=_CHUNK_BYTES_MAX,
            max_str_len=bytes_max,
            max_bin_len=bytes_max,
            max_array_len=bytes_max,
            max_map_len=bytes_max // 2,
            max_ext_len=0,
        )

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete now.

        Raises:
            LimitExceeded: a message is, or is going to be, longer than `bytes_max`.
            ProtocolError: the bytes are not MessagePack. Neither can be recovered from: close the connection.
        """
        if self._tail:
            self._tail += data
        source = self._tail or data
        messages: list[bytes] = []
        start = 0
        unpacker = self._unpacker
        if unpacker is None:
            return messages
        try:
            unpacker.feed(data)
            while True:
                unpacker.skip()
                end = unpacker.tell() - self._cut
                if end - start > self._bytes_max:
                    raise self._too_long()
                messages.append(bytes(source[start:end]))
                start = end
        except msgpack.OutOfData:
            pass
        except (msgpack.BufferFull, ValueError, msgpack.UnpackException) as error:
            raise ProtocolError(f"not a MessagePack stream: {str(error) or type(error).__name__}") from None
        if len(source) - start > self._bytes_max:
            raise self._too_long()
        self._cut += start
        if source is self._tail:
            del self._tail[:start]
        else:
            self._tail += source[start:]
        return messages

    def close(self) -> None:
        """Free the buffers: nothing more will come.

        Who holds a splitter is often part of a cycle, which the collector may take its time to find; a process with
        many objects then keeps the buffers of thousands of connections that are long gone.
        """
        self._unpacker = None
        self._tail = bytearray()

    def _too_long(self) -> LimitExceeded:
        return LimitExceeded(
            f"a message is longer than {self._bytes_max} bytes", limit="FRAME_BYTES_MAX", allowed=self._bytes_max
        )


class Ask(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """`[0, msgid, method, params]`; `params` still encoded."""

    kind: Literal[0]
    msgid: Annotated[int, msgspec.Meta(ge=0, le=MSGID_MAX)]
    method: str
    params: msgspec.Raw


class Answer(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """`[1, msgid, error, result]`; exactly one of the two is not nil."""

    kind: Literal[1]
    msgid: int
    error: msgspec.Raw
    result: msgspec.Raw


class Tell(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """`[2, method, params]`."""

    kind: Literal[2]
    method: str
    params: msgspec.Raw


_decode_ask = msgspec.msgpack.Decoder(Ask).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode
_decode_tell = msgspec.msgpack.Decoder(Tell).decode
_decode_any = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_int = msgspec.msgpack.Decoder(int).decode
_decode_error = msgspec.msgpack.Decoder(tuple[str, str, dict[str, Any]]).decode
_NIL: Final = b"\xc0"
# What msgspec's decoders raise, of JSON and TOML too; the second is for text that is not UTF-8.
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def decode_message(data: bytes) -> Ask | Answer | Tell:
    """Tell what one message is.

    Raises:
        ProtocolError: it is MessagePack, but not MessagePack-RPC.
    """
    try:
        # Every encoder in use writes the array and its first element in one byte each; others take the long way.
        kind = data[1] if data[0] in (0x93, 0x94) else _decode_int(_decode_any(data)[0])
        if kind == ASK:
            return _decode_ask(data)
        if kind == ANSWER:
            return _decode_answer(data)
        if kind == TELL:
            return _decode_tell(data)
    except (*UNREADABLE, IndexError) as error:
        raise ProtocolError(f"not a MessagePack-RPC message: {error}") from None
    raise ProtocolError("not a MessagePack-RPC message: the first element must be 0, 1 or 2")


_params_decoders: dict[type[Any], Any] = {}


def params_decoder(kind: type[T]) -> Callable[[bytes | msgspec.Raw], tuple[T]]:
    """The decoder of `params`, an array of one map, read as a `kind`; see `bad_params` for what it raises."""
    decoder = _params_decoders.get(kind)
    if decoder is None:
        decoder = _params_decoders[kind] = msgspec.msgpack.Decoder(tuple[kind]).decode  # type: ignore[valid-type]
    return cast("Callable[[bytes | msgspec.Raw], tuple[T]]", decoder)


def decode_params(kind: type[T], params: bytes | msgspec.Raw) -> T:
    """Decode `params`: an array of one map, read as a `kind`.

    Raises:
        InvalidArgument: a field is missing or of the wrong type; the message says which and what is allowed.
    """
    decoder = params_decoder(kind)
    try:
        (value,) = decoder(params)
    except UNREADABLE as error:
        raise bad_params(error) from None
    return value


def bad_params(error: Exception) -> InvalidArgument:
    """The error that says which field is missing or of the wrong type."""
    return InvalidArgument(f"params: {error}")


def decode(kind: type[T], data: bytes | msgspec.Raw) -> T:
    """Decode one value of a known type, as written by `encode`.

    Raises:
        ProtocolError: the bytes hold something else.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except UNREADABLE as error:
        raise ProtocolError(f"expected a {getattr(kind, '__name__', kind)}: {error}") from None


def checked(request: Request[Any]) -> Request[Any]:
    """The same request as it would arrive over a connection: types checked, nothing shared with the caller.

    Raises:
        InvalidArgument: a field has the wrong type, or cannot be encoded.
    """
    try:
        data = b"\x91" + encode(request)
    except (TypeError, UnicodeEncodeError, OverflowError, RecursionError) as error:
        raise InvalidArgument(f"{request.method}: {error}") from None
    return decode_params(type(request), data)


def ask(msgid: int, request: Request[Any]) -> bytes:
    """Encode a request as a call.

    Raises:
        InvalidArgument: a field cannot be encoded.
        LimitExceeded: the frame would be longer than the registry takes.
    """
    try:
        frame = encode((ASK, msgid, request.method, (request,)))
    except (TypeError, UnicodeEncodeError, OverflowError, RecursionError) as error:
        raise InvalidArgument(f"{request.method}: {error}") from None
    if len(frame) > FRAME_BYTES_MAX:
        raise LimitExceeded(
            f"{request.method}: the request has {len(frame)} bytes; allowed: {FRAME_BYTES_MAX}",
            limit="FRAME_BYTES_MAX",
            allowed=FRAME_BYTES_MAX,
        )
    return frame


def answer(msgid: int, result: object) -> bytes:
    """Encode a call's result, or the error that it is too long."""
    frame = encode((ANSWER, msgid, None, result))
    return frame if len(frame) <= FRAME_BYTES_MAX else _answer_too_long(msgid, frame)


def answer_encoded(msgid: int, result: bytes) -> bytes:
    """The same for a result that is encoded already."""
    frame = b"".join((b"\x94\x01", encode(msgid), _NIL, result))
    return frame if len(frame) <= FRAME_BYTES_MAX else _answer_too_long(msgid, frame)


def _answer_too_long(msgid: int, frame: bytes) -> bytes:
    error = LimitExceeded(
        f"the answer has {len(frame)} bytes; allowed: {FRAME_BYTES_MAX}; ask for less at a time",
        limit="FRAME_BYTES_MAX",
        allowed=FRAME_BYTES_MAX,
    )
    return answer_error(msgid, error)


def answer_error(msgid: int, error: HomeportError) -> bytes:
    """Encode a call's failure as `[code, message, details]`."""
    return b"".join((b"\x94\x01", encode(msgid), encode(to_wire(error)), _NIL))


def tell(notice: Notice) -> bytes:
    """Encode something said without a question."""
    return encode((TELL, notice.method, (notice,)))


def told(method: str) -> bytes:
    """The beginning of a watch's event, `[2, method, [watch, event]]`; the watch and the event follow, encoded.

    An event is encoded once for all its watchers, and only the watch's number differs.
    """
    return b"\x93\x02" + encode(method) + b"\x92"


def decode_error(raw: msgspec.Raw) -> HomeportError | None:
    """The error of an answer, or None if it has none.

    Raises:
        ProtocolError: the error has another shape.
    """
    if bytes(raw) == _NIL:
        return None
    try:
        return from_wire(*_decode_error(raw))
    except UNREADABLE as error:
        raise ProtocolError(f"an error must be [code, message, details]: {error}") from None
