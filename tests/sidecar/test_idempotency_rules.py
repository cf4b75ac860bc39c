"""What is remembered of requests that must not run twice, and what is refused: the rules alone, without any I/O."""

from __future__ import annotations

import random

import pytest

from homeport.client.core.errors import InvalidArgument
from homeport.sidecar import Idempotency, Remembering
from homeport.sidecar.core.idempotency import (
    ENTRY_BYTES,
    NO_TOKEN,
    WAITING_MAX,
    Answer,
    Entry,
    Memory,
    Token,
    Verdict,
    fingerprint_of,
    heard,
    key_of,
    said,
    scope_of,
    token_in,
)
from homeport.sidecar.core.routes import Refusal

SEEDS = range(200)
SAME = b"fingerprint"
OK = Answer(200, (b"Content-Type: text/plain",), False, b"done", ())


def memory_of(name: str = "a", **bounds: float) -> Memory[str]:
    return Memory(Remembering(**bounds), name)  # type: ignore[arg-type]


def run(memory: Memory[str], scope: bytes, token: Token | None = None, print_: bytes | None = SAME) -> Entry[str]:
    verdict, entry = memory.ask(scope, print_, token)
    assert verdict is Verdict.RUN
    assert entry is not None
    return entry


def asked(memory: Memory[str], scope: bytes, token: Token | None = None, print_: bytes | None = SAME) -> Verdict:
    return memory.ask(scope, print_, token)[0]


def test_what_ran_is_answered_from_memory() -> None:
    memory = memory_of()
    entry = run(memory, b"k")
    assert memory.finish(entry, OK, 0.0) == []
    verdict, found = memory.ask(b"k", SAME, None)
    assert verdict is Verdict.REPLAY
    assert found is not None
    assert found.answer == OK
    assert memory.replayed == 1


def test_what_is_under_way_is_waited_for_by_some_and_no_more() -> None:
    memory = memory_of()
    entry = run(memory, b"k")
    for number in range(WAITING_MAX):
        verdict, found = memory.ask(b"k", SAME, None)
        assert (verdict, found) == (Verdict.WAIT, entry)
        entry.waiting.append(str(number))
    assert asked(memory, b"k") is Verdict.BUSY
    assert memory.finish(entry, OK, 0.0) == [str(number) for number in range(WAITING_MAX)]


def test_the_same_key_with_another_request_is_refused() -> None:
    memory = memory_of()
    memory.finish(run(memory, b"k"), OK, 0.0)
    assert asked(memory, b"k", print_=b"other") is Verdict.MISMATCH


def test_an_outcome_that_nobody_knows_is_never_run_again() -> None:
    memory = memory_of()
    memory.lose(run(memory, b"k"), "it broke", 0.0)
    assert asked(memory, b"k") is Verdict.LOST


def test_what_was_certainly_not_delivered_may_run_and_is_no_gap() -> None:
    memory = memory_of()
    known = token_in(memory.token)
    memory.forget(run(memory, b"k"))
    assert memory.bytes == 0
    assert asked(memory, b"k", known) is Verdict.RUN


def test_an_answer_that_is_too_large_is_not_kept_and_its_request_not_run_again() -> None:
    memory = memory_of(answer_bytes_max=8)
    memory.finish(run(memory, b"k"), OK, 0.0)
    assert memory.bytes == ENTRY_BYTES
    assert asked(memory, b"k") is Verdict.LOST


def test_a_request_that_was_too_large_to_compare_is_not_run_again() -> None:
    memory = memory_of()
    entry = run(memory, b"k", print_=None)
    assert asked(memory, b"k") is Verdict.BUSY
    memory.finish(entry, OK, 0.0)
    assert asked(memory, b"k", print_=None) is Verdict.LOST


def test_answers_are_kept_for_their_time_and_then_forgotten() -> None:
    memory = memory_of(kept_s=10)
    memory.finish(run(memory, b"k"), OK, 5.0)
    memory.sweep(14.9)
    assert asked(memory, b"k") is Verdict.REPLAY
    memory.sweep(15.0)
    assert (len(memory), memory.bytes, memory.forgotten) == (0, 0, 1)


def test_count_and_bytes_are_bounded_and_what_ended_first_goes_first() -> None:
    memory = memory_of(entries_max=3)
    for number in range(5):
        memory.finish(run(memory, b"%d" % number), OK, float(number))
    assert [asked(memory, b"%d" % number) for number in (2, 3, 4)] == [Verdict.REPLAY] * 3
    assert len(memory) == 3
    memory = memory_of(bytes_max=64 * 1024)
    for number in range(100):
        memory.finish(run(memory, b"%d" % number), Answer(200, (), False, bytes(2000), ()), 0.0)
        assert memory.bytes <= 64 * 1024
    assert asked(memory, b"99") is Verdict.REPLAY


def test_what_is_under_way_is_never_forgotten() -> None:
    memory = memory_of(entries_max=2)
    run(memory, b"1")
    run(memory, b"2")
    memory.sweep(1e9)
    assert asked(memory, b"3") is Verdict.FULL
    assert asked(memory, b"1") is Verdict.WAIT


def test_a_retry_is_refused_by_a_memory_that_began_later() -> None:
    before, after = memory_of("a"), memory_of("b")
    known = token_in(before.token)
    assert asked(after, b"k", known) is Verdict.STALE
    assert asked(after, b"k", token_in(after.token)) is Verdict.RUN


def test_a_retry_is_refused_once_anything_that_came_after_it_was_known_is_forgotten() -> None:
    memory = memory_of(kept_s=10)
    known = token_in(memory.token)
    memory.finish(run(memory, b"other"), OK, 0.0)
    later = token_in(memory.token)
    memory.sweep(10.0)
    assert asked(memory, b"k", known) is Verdict.STALE
    assert asked(memory, b"k", later) is Verdict.RUN


@pytest.mark.parametrize("entries_max", [1, 10, 1000])
def test_a_token_stands_for_a_while_and_is_never_too_old_when_it_is_told(entries_max: int) -> None:
    memory = memory_of(entries_max=entries_max)
    told: dict[bytes, None] = {}
    for number in range(5000):
        told[memory.token] = None
        memory.finish(run(memory, b"%d" % number, token_in(memory.token)), OK, 0.0)
    assert len(told) <= 5000 / max(1, entries_max // 100)
    # What a memory that was full told last is good until nearly all of what it held then is forgotten.
    known = token_in(memory.token)
    for number in range(entries_max - entries_max // 32 - 1):
        memory.finish(run(memory, b"later %d" % number), OK, 0.0)
    assert asked(memory, b"late", known) is Verdict.RUN


def test_a_token_that_is_told_long_after_a_burst_is_good_for_nearly_as_long_as_answers_are_kept() -> None:
    memory = memory_of(kept_s=300)
    for number in range(8192):
        memory.finish(run(memory, b"%d" % number), OK, 0.0)
    known = b""
    for second in range(1, 580):
        memory.sweep(float(second))
        memory.finish(run(memory, b"later %d" % second), OK, float(second))
        if second == 290:
            known = memory.token
    assert memory.forgotten > 8192
    assert asked(memory, b"late", token_in(known)) is Verdict.RUN


def test_what_is_under_way_and_cannot_be_forgotten_makes_no_token_older() -> None:
    memory = memory_of(entries_max=1000)
    for number in range(990):
        run(memory, b"slow %d" % number)
    for number in range(500):
        known = token_in(memory.token)
        for between in range(3):
            memory.finish(run(memory, b"%d %d" % (number, between)), OK, 0.0)
        memory.finish(run(memory, b"retry %d" % number, known), OK, 0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_runs_twice_however_long_anything_waits(seed: int) -> None:
    """Requests that are lost, late, doubled and reordered, to a memory that forgets soon and is often replaced.

    A sender follows the rule: what it knows is fixed once a try may have been delivered. Everything it has ever sent
    may still arrive at any time.
    """
    rng = random.Random(seed)
    memory = memory_of("m0", entries_max=4)
    names = 0
    runs: dict[bytes, int] = {}
    on_the_way: list[tuple[bytes, bytes]] = []  # scope and token: arrives later, or never
    senders: dict[bytes, bytes] = {}  # scope -> its token
    sent: dict[bytes, int] = {}
    under_way: list[Entry[str]] = []
    latest = NO_TOKEN

    def send(scope: bytes, token: bytes) -> None:
        senders[scope] = token
        sent[scope] = sent.get(scope, 0) + 1
        on_the_way.append((scope, token))

    for step in range(400):
        match rng.randrange(6):
            case 0:  # a new request, with what is known by now
                send(b"%d" % step, latest)
            case 1 if senders:  # it is sent again, since nothing has come back
                scope = rng.choice(list(senders))
                send(scope, senders[scope])
            case 2 | 3 if on_the_way:
                scope, token = on_the_way.pop(rng.randrange(len(on_the_way)))
                verdict, entry = memory.ask(scope, SAME, token_in(token))
                if verdict is Verdict.RUN and entry is not None:
                    runs[scope] = runs.get(scope, 0) + 1
                    under_way.append(entry)
                if rng.random() < 0.7:  # the answer comes back
                    latest = memory.token
                    if verdict is Verdict.STALE and sent[scope] == 1:  # the only one, and it was not run
                        send(scope, latest)
                        sent[scope] = 1
            case 4 if under_way:
                memory.finish(under_way.pop(rng.randrange(len(under_way))), OK, float(step))
            case 5 if rng.random() < 0.1:
                names += 1
                memory = memory_of(f"m{names}", entries_max=4)
                under_way.clear()
    assert runs, f"seed {seed}"
    assert set(runs.values()) == {1}, f"seed {seed}: {[scope for scope, count in runs.items() if count > 1]}"


def test_a_token_goes_through_a_header_and_nonsense_names_no_memory() -> None:
    memory = memory_of("0a1b")
    run(memory, b"k")
    name, value = said(memory.token, Verdict.LOST).split(b": ", 1)
    assert name == b"x-homeport-idempotency"
    assert heard(value) == (b"0a1b.1", Verdict.LOST)
    assert token_in(heard(value)[0]) == Token("0a1b", 1)
    for nonsense in (b"", b"-", b".", b".1", b"a.", b"a.-1", b"a.1x", b"\xff.1", b"a." + b"9" * 21):
        assert token_in(nonsense) == Token("", 0)
        assert heard(nonsense) == (NO_TOKEN, None)


def test_a_key_belongs_to_its_caller_and_host() -> None:
    one = scope_of(b"k", b"orders", [b"Authorization: a", b"Accept: x"])
    assert one == scope_of(b"k", b"ORDERS", [b"Accept: y", b"authorization: a".replace(b"a", b"A", 1)])
    others = [
        scope_of(b"k2", b"orders", [b"Authorization: a"]),
        scope_of(b"k", b"prices", [b"Authorization: a"]),
        scope_of(b"k", b"orders", [b"Authorization: b"]),
        scope_of(b"k", b"orders", [b"Authorization: a", b"Cookie: c"]),
        scope_of(b"k", b"orders", [b"Authorization: a"], b"somebody by certificate"),
    ]
    assert len({one, *others}) == 6


def test_method_target_and_body_are_the_fingerprint() -> None:
    prints = {
        fingerprint_of(*parts) for parts in ((b"POST", b"/a", b"b"), (b"PATCH", b"/a", b"b"), (b"POST", b"/", b"ab"))
    }
    assert len(prints) == 3


@pytest.mark.parametrize(
    "lines",
    [[b'Idempotency-Key: "a"', b'idempotency-key: "b"'], [b'Idempotency-Key: ""'], [b"Idempotency-Key: " + b"x" * 256]],
)
def test_what_is_no_key_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(Refusal):
        key_of(lines)


def test_a_key_is_found_whatever_its_case() -> None:
    assert key_of([b"Accept: x", b'IDEMPOTENCY-KEY:  "a" ']) == b'"a"'
    assert key_of([b"Accept: x"]) is None


def test_a_scope_that_cannot_be_safe_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidArgument, match="no other may"):
        Idempotency(scope="service")
    with pytest.raises(InvalidArgument, match="kept_s"):
        Remembering(kept_s=0)
