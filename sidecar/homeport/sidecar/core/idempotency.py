"""What an inbound remembers of requests that must not run twice, and when it may run one: rules for idempotency keys.

A request with a key is run, and its answer kept; the same again gets that answer. The memory is bounded, so answers are
forgotten, and it ends with its process. Whoever sends a request again must not have it run twice for that, and no clock
can tell: either of the two may have waited in a buffer, for as long as a process may be stopped. So arrivals are
numbered, and a memory has a name of its own. A sender names the last arrival that it knew of *before* it first sent the
request (a token, `name.number`). If the key is not known, then

- under the same name, and with nothing forgotten that came after that number, it has never been run here: it may be;
- else nobody knows, and it is refused, with a new token. Whoever has not sent it before takes that one and sends it.

So each request is run once, or somebody is told that nobody knows. Requests without a token (from clients that know
nothing of this) are held to what is remembered, which is all that a key promises by itself.
Source of the key: IETF, draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from hashlib import sha256
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

from homeport.client.core.balancing.settings import check_range
from homeport.sidecar.core.routes import Refusal

KEY_HEADER: Final = b"Idempotency-Key"
TOKEN_HEADER: Final = b"x-homeport-idempotency"  # between an outbound and an inbound only
META: Final = "idempotency"  # an instance whose meta says "true" here is reached through an inbound that remembers
ONCE: Final = frozenset({b"POST", b"PATCH"})  # the methods that the draft speaks of: sent again, they happen again
NO_TOKEN: Final = b"-"  # of one who knows nothing of the memory yet
KEY_BYTES_MAX: Final = 255  # a UUID has 36; what is much longer is not a key
WAITING_MAX: Final = 16  # requests that wait for the same first one: each holds a connection
_LAG: Final = 32  # a token lags by this part of what is over, and of the time that it is kept
ENTRY_BYTES: Final = 512  # what an entry takes besides its answer: digests, dict, objects

_CREDENTIALS: Final = (b"authorization", b"cookie")
_PREFIX: Final = KEY_HEADER.lower() + b":"

W = TypeVar("W")


class Remembering(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much an inbound remembers of answers to requests with an idempotency key."""

    kept_s: float = 300.0  # from the answer on: longer than any sender of retries waits
    entries_max: int = 10_000  # answers; with those under way
    bytes_max: int = 64 * 1024 * 1024  # of all answers
    answer_bytes_max: int = 64 * 1024  # of one; a longer one passes, and its request is refused when it comes again

    def __post_init__(self) -> None:
        check_range("remembering.kept_s", self.kept_s, 1.0, 86_400.0)
        check_range("remembering.entries_max", self.entries_max, 1, 10_000_000)
        check_range("remembering.bytes_max", self.bytes_max, 64 * 1024, 1 << 40)
        check_range("remembering.answer_bytes_max", self.answer_bytes_max, 0, self.bytes_max)


class Token(NamedTuple):
    """The last arrival of a memory that somebody knew of."""

    memory: str
    arrived: int


class Verdict(Enum):
    """What becomes of a request; for one that is refused: its status and the reason."""

    RUN = ("run", 0, "")
    REPLAY = ("replay", 0, "")
    WAIT = ("wait", 0, "")
    STALE = ("stale", 425, "whether it has run before cannot be told: what remembers is new, or has forgotten since")
    BUSY = ("busy", 409, "the first request with this Idempotency-Key is still under way")
    LOST = ("lost", 409, "a request with this Idempotency-Key has run, and its answer is not known")
    MISMATCH = ("mismatch", 422, "another request had this Idempotency-Key: method, target and body must be the same")
    FULL = ("full", 503, "too many requests with an Idempotency-Key are under way")

    @property
    def word(self) -> str:
        return self.value[0]

    @property
    def status(self) -> int:
        return self.value[1]

    @property
    def text(self) -> str:
        return self.value[2]


_REFUSING: Final = {each.word.encode(): each for each in Verdict if each.status}


class Answer(NamedTuple):
    """An answer as it came: the head's plain lines, whether a body may follow it, body and trailers."""

    status: int
    lines: tuple[bytes, ...]
    bodiless: bool
    body: bytes
    trailers: tuple[tuple[bytes, bytes], ...]

    @property
    def size(self) -> int:
        return len(self.body) + sum(map(len, self.lines)) + sum(len(name) + len(value) for name, value in self.trailers)


class Entry(Generic[W]):
    """One request that was run. Until it is `over`, those that wait for it stand in `waiting`."""

    __slots__ = ("answer", "arrived", "ends_s", "fingerprint", "over", "scope", "size", "waiting", "why")

    def __init__(self, scope: bytes, fingerprint: bytes | None, arrived: int) -> None:
        self.scope = scope
        self.fingerprint = fingerprint  # None: too large to be compared
        self.arrived = arrived
        self.over = False
        self.answer: Answer | None = None  # None when it is over: nobody knows, see `why`
        self.why = ""
        self.ends_s = 0.0
        self.size = ENTRY_BYTES
        self.waiting: list[W] = []


class Memory(Generic[W]):
    """All that one inbound remembers.

    Args:
        name: Of this memory, never used again: whoever asks by another name asks an earlier one.
    """

    def __init__(self, bounds: Remembering, name: str) -> None:
        self.bounds = bounds
        self.name = name
        self.bytes = 0
        self.replayed = 0
        self.waited = 0
        self.forgotten = 0
        self.refused = dict.fromkeys(_REFUSING.values(), 0)
        self.arrived = 0  # requests that were run; their numbers
        self._told = -1  # the number in `_token`
        self._token = b""
        self._swept_s = 0.0  # when a sweep last told the newest one
        self._newest_forgotten = 0
        self._running = 0
        self._entries: dict[bytes, Entry[W]] = {}
        self._over: dict[bytes, Entry[W]] = {}  # in the order in which they ended, and so in which they are forgotten

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def token(self) -> bytes:
        """What a sender may name from now on: an arrival that is not forgotten, and not always the very last.

        An earlier one is as true, and costs less: heads that are alike are understood once (`http1.lines`). It lags by
        a small part of what can be forgotten, and of the time after which that is (`sweep`): so it is not too old
        notably earlier than the last one.
        """
        if self.arrived - self._told > len(self._over) // _LAG or self._told < self._newest_forgotten:
            self._tell()
        return self._token

    def _tell(self) -> None:
        self._told = self.arrived
        self._token = f"{self.name}.{self._told}".encode()

    def ask(self, scope: bytes, fingerprint: bytes | None, token: Token | None) -> tuple[Verdict, Entry[W] | None]:
        """What becomes of a request. RUN comes with its entry, which must be ended by `finish`, `lose` or `forget`.

        Args:
            scope: Whose key, and which.
            fingerprint: What must be the same when it comes again; None: it is too large to tell.
            token: What its sender knew before it was first sent; None: nothing is said of that.
        """
        entry = self._entries.get(scope)
        if entry is None:
            verdict, entry = self._begin(scope, fingerprint, token)
        else:
            verdict = self._again(entry, fingerprint)
        if verdict is Verdict.REPLAY:
            self.replayed += 1
        elif verdict is Verdict.WAIT:
            self.waited += 1
        elif verdict.status:
            self.refused[verdict] += 1
        return verdict, entry

    def _begin(self, scope: bytes, fingerprint: bytes | None, token: Token | None) -> tuple[Verdict, Entry[W] | None]:
        if token is not None and (token.memory != self.name or token.arrived < self._newest_forgotten):
            return Verdict.STALE, None
        while len(self._entries) >= self.bounds.entries_max and self._over:
            self._forget_oldest()
        if len(self._entries) >= self.bounds.entries_max:
            return Verdict.FULL, None
        self.arrived += 1
        entry: Entry[W] = Entry(scope, fingerprint, self.arrived)
        self._entries[scope] = entry
        self.bytes += entry.size
        return Verdict.RUN, entry

    @staticmethod
    def _again(entry: Entry[W], fingerprint: bytes | None) -> Verdict:
        if fingerprint is None or entry.fingerprint is None:
            return Verdict.LOST if entry.over else Verdict.BUSY
        if fingerprint != entry.fingerprint:
            return Verdict.MISMATCH
        if entry.answer is not None:
            return Verdict.REPLAY
        if entry.over:
            return Verdict.LOST
        return Verdict.WAIT if len(entry.waiting) < WAITING_MAX else Verdict.BUSY

    def finish(self, entry: Entry[W], answer: Answer, now: float) -> list[W]:
        """It has this answer. Returns who waited for it."""
        if answer.size > self.bounds.answer_bytes_max:
            return self.lose(entry, "it was too large to be remembered", now)
        entry.answer = answer
        return self._end(entry, answer.size, now)

    def lose(self, entry: Entry[W], why: str, now: float) -> list[W]:
        """It may have run, and nobody knows its answer. Returns who waited for it."""
        entry.why = why
        return self._end(entry, 0, now)

    def forget(self, entry: Entry[W]) -> list[W]:
        """It has certainly not run: the next one may. Returns who waited for it."""
        del self._entries[entry.scope]
        self.bytes -= entry.size
        entry.over = True
        waiting, entry.waiting = entry.waiting, []
        return waiting

    def _end(self, entry: Entry[W], size: int, now: float) -> list[W]:
        assert not entry.over
        entry.over = True
        entry.ends_s = now + self.bounds.kept_s
        entry.size += size
        self.bytes += size
        self._over[entry.scope] = entry
        while self.bytes > self.bounds.bytes_max and self._over:
            self._forget_oldest()
        waiting, entry.waiting = entry.waiting, []
        return waiting

    def sweep(self, now: float) -> None:
        """Forget what has been kept for long enough."""
        if now - self._swept_s >= self.bounds.kept_s / _LAG:
            self._swept_s = now
            self._tell()
        while self._over and next(iter(self._over.values())).ends_s <= now:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        scope, entry = next(iter(self._over.items()))
        del self._over[scope]
        del self._entries[scope]
        self.bytes -= entry.size
        self.forgotten += 1
        self._newest_forgotten = max(self._newest_forgotten, entry.arrived)


# What the headers say.


def has_key(lines: Sequence[bytes]) -> bool:
    """Whether a request bears an idempotency key, be it right or not."""
    return any(line[: len(_PREFIX)].lower() == _PREFIX for line in lines)


def key_of(lines: Sequence[bytes]) -> bytes | None:
    """A request's idempotency key; None: it has none.

    Raises:
        Refusal: it has several, or one that is none.
    """
    keys = [line[len(_PREFIX) :].strip() for line in lines if line[: len(_PREFIX)].lower() == _PREFIX]
    if not keys:
        return None
    if len(keys) > 1 or not keys[0].strip(b'"') or len(keys[0]) > KEY_BYTES_MAX:
        raise Refusal(400, "", f"a request has one Idempotency-Key of 1 to {KEY_BYTES_MAX} bytes")
    return keys[0]


def scope_of(key: bytes, host: bytes, lines: Sequence[bytes], caller: bytes = b"") -> bytes:
    """Whose key: the same one from somebody else, or for another host, is another.

    Callers are told apart by the credentials in their requests, and by `caller`, who they are by their certificates:
    by what is the same for each try of a request, as an address need not be.
    """
    credentials = [line for line in lines if line.partition(b":")[0].lower() in _CREDENTIALS]
    return _digest(key, host.lower(), caller, *credentials)


def fingerprint_of(method: bytes, target: bytes, body: bytes) -> bytes:
    """What must be the same when a request comes again."""
    return _digest(method, target, body)


def _digest(*parts: bytes) -> bytes:
    made = sha256()
    for part in parts:
        made.update(b"%d:%b" % (len(part), part))
    return made.digest()


def token_in(value: bytes) -> Token:
    """The token in a header; what is none names no memory at all."""
    memory, dot, number = value.partition(b";")[0].strip().rpartition(b".")
    if not dot or not number.isdigit() or len(number) > 20 or not memory.isalnum():
        return Token("", 0)
    return Token(memory.decode(), int(number))


def said(token: bytes, verdict: Verdict | None = None) -> bytes:
    """What a memory says in the head of an answer: its token, and why it has refused, if so."""
    refused = b"" if verdict is None else b"; refused=%b" % verdict.word.encode()
    return b"%b: %b%b" % (TOKEN_HEADER, token, refused)


def heard(value: bytes) -> tuple[bytes, Verdict | None]:
    """The same, read: the token, and why it has refused; what is not understood is no token."""
    token, _, refused = value.partition(b"; refused=")
    return (token if token_in(token).memory else NO_TOKEN), _REFUSING.get(refused)
