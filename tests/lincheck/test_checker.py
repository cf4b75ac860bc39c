"""The linearizability checker itself: histories known to be right, histories known to be wrong, and brute force."""

from __future__ import annotations

import itertools
import random

import pytest

from homeport.mesh.simulation.linearizability import Operation, State, Undecided, check, step

KEY = b"k"


def get(called: int, returned: int | None, result: bytes | None, *, client: int = 0) -> Operation:
    return Operation(client, "get", KEY, called, returned, result=result)


def put(called: int, returned: int | None, value: bytes, *, client: int = 0) -> Operation:
    return Operation(client, "put", KEY, called, returned, value=value)


def delete(called: int, returned: int | None, result: bool = True) -> Operation:
    return Operation(0, "delete", KEY, called, returned, result=result)


def cas(called: int, returned: int | None, expected: State, value: bytes, result: bool = True) -> Operation:
    return Operation(0, "cas", KEY, called, returned, value=value, expected=expected, result=result)


RIGHT = {
    "nothing": [],
    "one after the other": [put(1, 2, b"1"), get(3, 4, b"1"), delete(5, 6), get(7, 8, None)],
    "a read during a write sees the old value": [put(1, 2, b"1"), put(3, 8, b"2"), get(4, 5, b"1")],
    "a read during a write sees the new value": [put(1, 2, b"1"), put(3, 8, b"2"), get(4, 5, b"2"), get(6, 7, b"2")],
    "two writes at once, in the order that the read shows": [put(1, 5, b"1"), put(2, 6, b"2"), get(7, 8, b"1")],
    "of two cas at once one wins": [cas(1, 4, None, b"1"), cas(2, 3, None, b"2", False), get(5, 6, b"1")],
    "a cas that fails saw another value": [put(1, 2, b"1"), cas(3, 4, b"0", b"2", False), get(5, 6, b"1")],
    "an unknown write takes effect at once": [put(1, None, b"1"), get(2, 3, b"1")],
    "an unknown write takes effect later": [put(1, None, b"1"), get(2, 3, None), get(4, 5, b"1")],
    "an unknown write never takes effect": [put(1, None, b"1"), get(2, 3, None), put(4, 5, b"2"), get(6, 7, b"2")],
    "an unknown write takes effect after a later one": [put(1, None, b"1"), put(2, 3, b"2"), get(4, 5, b"1")],
    "an unknown cas took effect": [put(1, 2, b"1"), cas(3, None, b"1", b"2"), get(4, 5, b"1"), get(6, 7, b"2")],
    "an unknown delete took effect": [put(1, 2, b"1"), delete(3, None), get(4, 5, b"1"), get(6, 7, None)],
    "an unknown read binds nothing": [put(1, 2, b"1"), get(3, None, b"nonsense"), get(4, 5, b"1")],
    "a delete that found nothing": [delete(1, 2, False), put(3, 4, b"1"), delete(5, 6, True), delete(7, 8, False)],
}

WRONG = {
    "a stale read": [put(1, 2, b"1"), put(3, 4, b"2"), get(5, 6, b"1")],
    "a read of what was never written": [put(1, 2, b"1"), get(3, 4, b"2")],
    "a read from the future": [get(1, 2, b"1"), put(3, 4, b"1")],
    "a lost write": [put(1, 2, b"1"), get(3, 4, None)],
    "a lost update": [put(1, 2, b"1"), cas(3, 4, b"1", b"2"), get(5, 6, b"1")],
    "time runs backwards for one reader": [put(1, 2, b"1"), put(3, 10, b"2"), get(4, 5, b"2"), get(6, 7, b"1")],
    "two readers disagree on the order of two writes": [
        put(1, 20, b"1"),
        put(2, 21, b"2"),
        get(3, 4, b"1", client=1),
        get(5, 6, b"2", client=1),
        get(7, 8, b"1", client=2),
    ],
    "both of two cas succeed": [cas(1, 4, None, b"1"), cas(2, 3, None, b"2")],
    "a cas that failed although its demand held": [put(1, 2, b"1"), cas(3, 4, b"1", b"2", False)],
    "a cas that succeeded on a deleted key": [put(1, 2, b"1"), delete(3, 4), cas(5, 6, b"1", b"2")],
    "one deletion reported twice": [put(1, 2, b"1"), delete(3, 5), delete(4, 6)],
    "a deletion undone": [put(1, 2, b"1"), delete(3, 4), get(5, 6, b"1")],
    "an unknown write that came and went": [put(1, None, b"1"), get(2, 3, b"1"), get(4, 5, None)],
    "an unknown write that took effect twice": [
        put(1, None, b"1"),
        get(2, 3, b"1"),
        put(4, 5, b"2"),
        get(6, 7, b"1"),
    ],
    "an unknown write that took effect before its call": [get(1, 2, b"1"), put(3, None, b"1")],
    "an unknown cas that wrote although its demand never held": [
        put(1, 2, b"1"),
        cas(3, None, b"0", b"2"),
        get(4, 5, b"2"),
    ],
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_history_is_accepted(name: str) -> None:
    assert check(RIGHT[name]) is None


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_is_refused(name: str) -> None:
    assert check(WRONG[name]) is not None


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_is_refused_among_many_right_operations(name: str) -> None:
    """Other keys do not hide it, and neither do operations on the same key before it."""
    other = [Operation(9, "put", b"other", at, at + 1, value=b"%d" % at) for at in range(1, 41, 2)]
    before = [*(put(at, at + 1, b"%d" % at, client=9) for at in range(-100, -40, 2)), delete(-2, -1)]
    assert check([*other, *before, *WRONG[name]]) is not None
    assert check([*other, *before]) is None


def test_keys_are_independent() -> None:
    """Each key has its own order; a write to one says nothing of another."""
    other = Operation(0, "get", b"other", 3, 4, result=None)
    assert check([put(1, 2, b"1"), other, get(5, 6, b"1")]) is None


def test_a_violation_shows_the_operation_without_a_place() -> None:
    violation = check(WRONG["a stale read"])
    assert violation is not None
    assert violation.key == KEY
    assert violation.deepest == tuple(WRONG["a stale read"][:2])
    assert str(violation).endswith("and no place for:\n       5 to      6  client 0  get -> b'1'")


def test_a_search_that_is_too_long_says_so() -> None:
    history = [put(at, at + 100, b"%d" % at) for at in range(1, 60)]
    assert check(history) is None
    with pytest.raises(Undecided):
        check(history, steps_max=20)


def orders(operations: list[Operation]) -> bool:
    """The definition itself: try every order of all that has an answer, with any of those that have none."""
    unknown = [one for one in operations if one.returned is None]
    known = [one for one in operations if one.returned is not None]
    for size in range(len(unknown) + 1):
        for happened in itertools.combinations(unknown, size):
            if any(_valid(order) for order in itertools.permutations([*known, *happened])):
                return True
    return False


def _valid(order: tuple[Operation, ...]) -> bool:
    state: State = None
    for at, operation in enumerate(order):
        if any(later.returned is not None and later.returned < operation.called for later in order[at + 1 :]):
            return False
        legal, state = step(state, operation)
        if not legal:
            return False
    return True


@pytest.mark.parametrize("seed", range(40))
def test_the_search_agrees_with_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    verdicts = set()
    for _ in range(25):
        operations = [_draw(rng, client) for client in range(rng.randrange(1, 6))]
        verdict = check(operations) is None
        assert verdict == orders(operations), f"seed {seed}: {[str(one) for one in operations]}"
        verdicts.add(verdict)
    assert verdicts == {True, False}, f"seed {seed} draws nothing that tells right from wrong"


def _draw(rng: random.Random, client: int) -> Operation:
    values: list[State] = [None, b"1", b"2"]
    called = rng.randrange(0, 20) * 2
    returned = None if rng.random() < 0.25 else called + 1 + rng.randrange(0, 8) * 2
    match rng.choice(("get", "put", "put", "delete", "cas")):
        case "get":
            return Operation(client, "get", KEY, called, returned, result=rng.choice(values))
        case "put":
            return put(called, returned, rng.choice((b"1", b"2")), client=client)
        case "delete":
            return delete(called, returned, rng.random() < 0.5)
        case _:
            return cas(called, returned, rng.choice(values), rng.choice((b"1", b"2")), rng.random() < 0.5)
