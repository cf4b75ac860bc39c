"""What the site has promised its users so far, and whether an answer keeps those promises. Pure: no I/O, no clock.

Worked example: Ada follows Bob, and Bob's upload of photo 7 was answered before Ada asks for her feed. Then photo 7 is
in her feed, unless the page is full of newer ones. What was still under way when she asked may be there or not; what
nobody uploaded may not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo as its owner sent it."""

    id: str
    owner: str
    taken_ms: int
    tags: tuple[str, ...]
    image: bytes

    @property
    def place(self) -> tuple[int, str]:
        """Newer photos have a greater place; no two share one."""
        return self.taken_ms, self.id


@dataclass(slots=True)
class Ledger:
    """`sent` is what users asked for, answered or not; `kept` what the site confirmed, and owes from then on."""

    page_sizes: set[int] = field(default_factory=set)  # every value the setting ever had
    bios: dict[str, str] = field(default_factory=dict)
    sent: dict[str, Photo] = field(default_factory=dict)
    kept: list[Photo] = field(default_factory=list)
    follows_sent: set[tuple[str, str]] = field(default_factory=set)
    follows_kept: set[tuple[str, str]] = field(default_factory=set)

    def feed_check(self, user: str) -> Callable[[Any], str | None]:
        """Call before asking for a feed; the result judges the decoded answer: None, or what is wrong with it."""
        owed = [photo for photo in self.kept if (user, photo.owner) in self.follows_kept]

        def judge(answer: Any) -> str | None:
            if answer.get("user") != user:
                return f"asked for the feed of {user}, got that of {answer.get('user')}"
            return self._page(answer, owed, lambda photo: (user, photo.owner) in self.follows_sent)

        return judge

    def search_check(self, tag: str) -> Callable[[Any], str | None]:
        """As `feed_check`, for a search by tag."""
        owed = [photo for photo in self.kept if tag in photo.tags]

        def judge(answer: Any) -> str | None:
            if answer.get("tag") != tag:
                return f"searched for {tag}, got {answer.get('tag')}"
            return self._page(answer, owed, lambda photo: tag in photo.tags)

        return judge

    def _page(self, answer: Any, owed: list[Photo], belongs: Callable[[Photo], bool]) -> str | None:
        page_size, shown = answer["page_size"], answer["photos"]
        if page_size not in self.page_sizes:
            return f"page size {page_size} was never set; set were {sorted(self.page_sizes)}"
        if len(shown) > page_size:
            return f"{len(shown)} photos on a page of {page_size}"
        places = [(entry["taken_ms"], entry["id"]) for entry in shown]
        if any(later >= earlier for earlier, later in itertools.pairwise(places)):
            return "photos are out of order or shown twice"
        for entry in shown:
            photo = self.sent.get(entry["id"])
            if photo is None or entry["owner"] != photo.owner or entry["taken_ms"] != photo.taken_ms:
                return f"photo {entry['id']} was never uploaded like this"
            if not belongs(photo):
                return f"photo {photo.id} does not belong on this page"
            if entry["bio"] != self.bios[photo.owner]:
                return f"the owner of photo {photo.id} is not who they said: {entry['bio']!r}"
        full = len(shown) == page_size
        listed = set(places)
        for photo in owed:
            if photo.place not in listed and not (full and photo.place < places[-1]):
                return f"photo {photo.id} was confirmed and is missing"
        return None
