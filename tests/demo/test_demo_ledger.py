"""The ledger: what users were promised must be shown, what nobody did must not."""

from __future__ import annotations

from typing import Any

import pytest

from homeport.mesh.demo.ledger import Ledger, Photo

PAGE_SIZE = 3


def photo(number: int, owner: str = "bob", tags: tuple[str, ...] = ("boat",)) -> Photo:
    return Photo(id=f"p{number}", owner=owner, taken_ms=number, tags=tags, image=b"")


def shown(*photos: Photo) -> list[dict[str, Any]]:
    return [{"id": p.id, "owner": p.owner, "taken_ms": p.taken_ms, "bio": f"{p.owner}!"} for p in photos]


def feed(*photos: Photo) -> dict[str, Any]:
    return {"user": "ada", "page_size": PAGE_SIZE, "photos": shown(*photos)}


@pytest.fixture
def ledger() -> Ledger:
    """Ada follows Bob; Bob's photos 1 and 2 were confirmed, his photo 3 was sent; Carla's photo 4 was confirmed."""
    ledger = Ledger(page_sizes={PAGE_SIZE}, bios={"bob": "bob!", "carla": "carla!"})
    ledger.follows_sent.add(("ada", "bob"))
    ledger.follows_kept.add(("ada", "bob"))
    for each in (photo(1), photo(2), photo(3), photo(4, "carla")):
        ledger.sent[each.id] = each
    ledger.kept += [photo(1), photo(2), photo(4, "carla")]
    return ledger


def test_a_feed_with_everything_confirmed_is_right(ledger: Ledger) -> None:
    assert ledger.feed_check("ada")(feed(photo(2), photo(1))) is None


def test_a_photo_still_on_its_way_may_be_shown_or_not(ledger: Ledger) -> None:
    assert ledger.feed_check("ada")(feed(photo(3), photo(2), photo(1))) is None


def test_a_confirmed_photo_must_be_shown(ledger: Ledger) -> None:
    wrong = ledger.feed_check("ada")(feed(photo(2)))
    assert wrong is not None
    assert "p1 was confirmed and is missing" in wrong


def test_what_is_confirmed_after_the_question_is_not_owed_to_it(ledger: Ledger) -> None:
    judge = ledger.feed_check("ada")
    ledger.kept.append(photo(3))
    assert judge(feed(photo(2), photo(1))) is None
    assert ledger.feed_check("ada")(feed(photo(2), photo(1))) is not None


def test_a_full_page_owes_only_its_newest(ledger: Ledger) -> None:
    newer = [photo(number) for number in (5, 6, 7)]
    for each in newer:
        ledger.sent[each.id] = each
        ledger.kept.append(each)
    assert ledger.feed_check("ada")(feed(*reversed(newer))) is None
    assert ledger.feed_check("ada")(feed(photo(7), photo(6), photo(2))) is not None  # 5 is newer than 2


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (feed(photo(4, "carla"), photo(2), photo(1)), "does not belong"),
        (feed(photo(9), photo(2), photo(1)), "never uploaded"),
        (feed(photo(2, "carla"), photo(1)), "never uploaded"),
        (feed(photo(1), photo(2)), "out of order"),
        (feed(photo(2), photo(2), photo(1)), "shown twice"),
        (feed(photo(4), photo(3), photo(2), photo(1)), "on a page of 3"),
        ({**feed(photo(2), photo(1)), "user": "bob"}, "feed of ada"),
        ({**feed(photo(2), photo(1)), "page_size": 99}, "page size 99"),
    ],
)
def test_an_answer_that_breaks_a_promise_is_named(ledger: Ledger, answer: dict[str, Any], complaint: str) -> None:
    wrong = ledger.feed_check("ada")(answer)
    assert wrong is not None
    assert complaint in wrong


def test_an_owner_shown_with_another_bio_is_wrong(ledger: Ledger) -> None:
    answer = feed(photo(2), photo(1))
    answer["photos"][0]["bio"] = None
    wrong = ledger.feed_check("ada")(answer)
    assert wrong is not None
    assert "not who they said" in wrong


def test_a_search_owes_every_confirmed_photo_with_the_tag_and_no_other(ledger: Ledger) -> None:
    gull = photo(8, tags=("gull",))
    ledger.sent[gull.id] = gull
    ledger.kept.append(gull)

    def found(*photos: Photo) -> dict[str, Any]:
        return {"tag": "boat", "page_size": PAGE_SIZE, "photos": shown(*photos)}

    judge = ledger.search_check("boat")
    assert judge(found(photo(4, "carla"), photo(2), photo(1))) is None
    assert judge(found(photo(2), photo(1))) is not None
    assert judge(found(gull, photo(4, "carla"), photo(2))) is not None
