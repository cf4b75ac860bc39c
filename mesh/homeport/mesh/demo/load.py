"""The site's users: so many at a time, each asking, looking at the answer, and thinking before asking again.

They come in by the edge, never try anything twice, and hold every answer against the ledger. All they do is
idempotent: uploads and follows are PUTs under names of their own choosing.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec

from homeport.mesh.demo.ledger import Ledger, Photo
from homeport.mesh.demo.report import Failure, Tally
from homeport.mesh.one_try import Answer, Connection, TryError

VISITORS: Final = 12  # at a time
THINK_S_MEAN: Final = 0.15  # some 75 requests a second, and three or four times as many behind the edge
REQUEST_TIMEOUT_S: Final = 10.0  # after which a user takes the site for broken

FEEDS_AGREED: Final = 8  # in a row: enough to have met every instance, wherever the balancer sends them
FEEDS_INTERVAL_S: Final = 0.05
FEEDS_MAX: Final = 160  # eight seconds; a client may wait five before it looks for a lost registry again

USERS: Final = (
    *("ada", "bob", "carla", "dmitri", "elif", "farid", "greta", "hana", "ivan", "joana"),
    *("kwame", "lena", "mateo", "nora", "omar", "petra", "quentin", "rosa", "sven", "tara"),
)
FOLLOWED_AT_FIRST: Final = 4  # by each user
TAGS: Final = ("harbour", "lighthouse", "boat", "rope", "gull", "fog", "tide", "crane", "pier", "anchor")
ACTIONS: Final = {"feed": 32, "search": 22, "upload": 16, "image": 14, "profile": 10, "follow": 6}  # relative shares

Judge = Callable[[Answer], str | None]


@dataclass(slots=True)
class Load:
    """The users and what they have seen. `run` plays them until told to stop."""

    edge: str
    rng: random.Random
    tally: Tally = field(default_factory=Tally)
    ledger: Ledger = field(default_factory=Ledger)
    _asked: int = field(default=0, init=False)
    _last_taken_ms: int = field(default=0, init=False)

    async def seed(self) -> None:
        """Sign up the users, let them follow a few others and upload a photo each."""
        for name in USERS:
            self.ledger.bios[name] = f"{name} likes {self.rng.choice(TAGS)}s"
        await self._together([partial(self._sign_up, name=name) for name in USERS])
        follows = [(name, other) for name in USERS for other in self.rng.sample(USERS, FOLLOWED_AT_FIRST)]
        await self._together([partial(self._follow, user=user, other=other) for user, other in follows])
        await self._together([partial(self._upload, owner=name) for name in USERS])

    async def run(self, stop: asyncio.Event) -> None:
        """Play all users until `stop` is set; every request that was begun is answered or counted as failed."""
        async with asyncio.TaskGroup() as group:
            for _ in range(VISITORS):
                group.create_task(self._visit(stop))

    async def feeds_go_by(self, page_size: int) -> bool:
        """Ask for feeds until each of the last few went by this page size; False if that takes too long."""
        connection, agreed = Connection(self.edge), 0
        for _ in range(FEEDS_MAX):
            user = self.rng.choice(USERS)
            check, size = self.ledger.feed_check(user), 0

            def judge(answer: Any, check: Callable[[Any], str | None] = check) -> str | None:
                nonlocal size
                size = answer["page_size"]
                return check(answer)

            await self._ask(connection, "feed", "feed", "GET", f"/feeds/{user}", _json(judge))
            agreed = agreed + 1 if size == page_size else 0
            if agreed == FEEDS_AGREED:
                break
            await asyncio.sleep(FEEDS_INTERVAL_S)
        connection.close()
        return agreed == FEEDS_AGREED

    async def _together(self, work: list[Callable[[Connection], Awaitable[object]]]) -> None:
        """Do all of it, as many things at a time as there are visitors."""
        todo = iter(work)

        async def some() -> None:
            connection = Connection(self.edge)
            for one in todo:
                await one(connection)
            connection.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(VISITORS):
                group.create_task(some())

    async def _visit(self, stop: asyncio.Event) -> None:
        connection = Connection(self.edge)
        while not stop.is_set():
            await asyncio.sleep(self.rng.uniform(0, 2 * THINK_S_MEAN))
            user = self.rng.choice(USERS)
            (action,) = self.rng.choices(list(ACTIONS), list(ACTIONS.values()))
            match action:
                case "feed":
                    judge = _json(self.ledger.feed_check(user))
                    await self._ask(connection, "feed", "feed", "GET", f"/feeds/{user}", judge)
                case "search":
                    tag = self.rng.choice(TAGS)
                    judge = _json(self.ledger.search_check(tag))
                    await self._ask(connection, "search", "search", "GET", f"/search?tag={tag}", judge)
                case "image" if self.ledger.kept:
                    photo = self.rng.choice(self.ledger.kept)
                    await self._ask(
                        connection, "image", "photo-upload", "GET", f"/photos/{photo.id}", _bytes(photo.image)
                    )
                case "profile":
                    expected = {"name": user, "bio": self.ledger.bios[user]}
                    await self._ask(connection, "profile", "user-profile", "GET", f"/users/{user}", _equal(expected))
                case "follow":
                    await self._follow(connection, user, self.rng.choice(USERS))
                case _:
                    await self._upload(connection, user)
        connection.close()

    async def _sign_up(self, connection: Connection, name: str) -> None:
        bio = self.ledger.bios[name]
        body = msgspec.json.encode({"bio": bio})
        judge = _equal({"name": name, "bio": bio})
        await self._ask(connection, "sign-up", "user-profile", "PUT", f"/users/{name}", judge, body)

    async def _follow(self, connection: Connection, user: str, other: str) -> None:
        self.ledger.follows_sent.add((user, other))
        judge = _equal({"user": user, "follows": other})
        if await self._ask(connection, "follow", "follower", "PUT", f"/users/{user}/following/{other}", judge):
            self.ledger.follows_kept.add((user, other))

    async def _upload(self, connection: Connection, owner: str) -> None:
        # Every photo is newer than the last one, so that its place in a feed does not depend on who was faster.
        self._last_taken_ms = max(self._last_taken_ms + 1, time.time_ns() // 1_000_000)
        photo = Photo(
            id=f"{self.rng.getrandbits(64):016x}",
            owner=owner,
            taken_ms=self._last_taken_ms,
            tags=tuple(sorted(self.rng.sample(TAGS, 2))),
            image=picture(self.rng),
        )
        self.ledger.sent[photo.id] = photo
        target = f"/photos/{photo.id}?by={owner}&taken_ms={photo.taken_ms}&tags={','.join(photo.tags)}"
        judge = _equal({"id": photo.id})
        if await self._ask(connection, "upload", "photo-upload", "PUT", target, judge, photo.image, "image/png"):
            self.ledger.kept.append(photo)

    async def _ask(
        self,
        connection: Connection,
        action: str,
        service: str,
        method: str,
        target: str,
        judge: Judge,
        body: bytes = b"",
        content_type: str = "application/json",
    ) -> bool:
        """Ask once, count what came of it, and return whether it was as it should be."""
        self._asked += 1
        request_id = f"r{self._asked}"
        headers = {"x-request-id": request_id} | ({"content-type": content_type} if body else {})
        wrong: str | None
        began, served_by, started = False, "", time.perf_counter()
        try:
            answer = await connection.request(
                method, target, host=service, timeout_s=REQUEST_TIMEOUT_S, headers=headers, body=body
            )
            wrong = judge(answer)
            served_by = answer.headers.get("x-served-by", "?")
        except TryError as error:
            wrong, began = str(error), error.began
        latency_ms = (time.perf_counter() - started) * 1000
        if wrong is None:
            self.tally.done(action, latency_ms, served_by)
            return True
        reason = f"{method} http://{service}{target}: {wrong}"
        self.tally.failed(Failure(request_id, action, reason, began), latency_ms)
        return False


def _json(check: Callable[[Any], str | None]) -> Judge:
    """Judge the decoded body of a successful answer."""

    def judge(answer: Answer) -> str | None:
        if answer.status != 200:
            return f"{answer.status} {answer.body[:300].decode(errors='replace')}"
        try:
            return check(msgspec.json.decode(answer.body))
        except (msgspec.MsgspecError, LookupError, TypeError) as error:
            return f"not an answer of this site: {error!r}"

    return judge


def _equal(expected: object) -> Judge:
    return _json(lambda value: None if value == expected else f"{value!r} instead of {expected!r}")


def _bytes(expected: bytes) -> Judge:
    def judge(answer: Answer) -> str | None:
        if answer.status != 200:
            return f"{answer.status} {answer.body[:300].decode(errors='replace')}"
        return None if answer.body == expected else f"another image of {len(answer.body)} bytes"

    return judge


def picture(rng: random.Random, side: int = 32) -> bytes:
    """A PNG of `side` by `side` random pixels (3 KiB): noise, so that it neither shrinks nor equals another."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)  # 8 bits per channel, RGB, nothing special
    rows = b"".join(b"\0" + rng.randbytes(3 * side) for _ in range(side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
