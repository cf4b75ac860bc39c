"""A linearizability checker: could a single copy have shown this, in an order of operations that respects time?

The search is Wing and Gong's ("Testing and verifying concurrent objects", 1993) in the form of Lowe's and Horn and
Kroening's: walk the events in order, linearize a call as soon as the model allows it, undo the last one when an
operation's end is met that has not been linearized, and never look twice at the same set of operations with the same
state. A history is split by key first (linearizability is local), which keeps each search short.

An operation whose outcome is unknown (its connection broke) has no end: it may take effect at any time after its call,
or never. It needs no place in the order, so the search is over once every operation with an answer has its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["get", "put", "delete", "cas"]
State = bytes | None  # of one key: its value, None while it is absent

STEPS_MAX: Final = 5_000_000  # of one key's search: about ten seconds; past it the search says so instead of going on


@dataclass(frozen=True)
class Operation:
    """One call and its answer, between two moments of one clock shared by all clients.

    Attributes:
        called, returned: moments on that clock; `returned` None: the outcome is unknown.
        value: what a put or a cas writes.
        expected: the value a cas demands (None: that the key be absent).
        result: of a get the value or None; of a cas whether it wrote; of a delete whether there was anything.
    """

    client: int
    kind: Kind
    key: bytes
    called: int
    returned: int | None = None
    value: bytes = b""
    expected: State = None
    result: bytes | bool | None = None

    def __str__(self) -> str:
        what = {
            "get": f"get -> {self.result!r}",
            "put": f"put {self.value!r}",
            "delete": f"delete -> {self.result!r}",
            "cas": f"cas {self.expected!r} => {self.value!r} -> {self.result!r}",
        }[self.kind]
        until = f"{self.returned:>6}" if self.returned is not None else "     ?"
        return f"{self.called:>6} to {until}  client {self.client}  {what}"


class Undecided(Exception):
    """The search took more steps than it may; the history says nothing either way."""


@dataclass(frozen=True)
class Violation:
    """The operations of one key have no valid order; `deepest` is the longest beginning of one that was found."""

    key: bytes
    operations: tuple[Operation, ...]
    deepest: tuple[Operation, ...]

    def __str__(self) -> str:
        lines = [f"key {self.key!r}: no order of these operations could be shown by a single copy:"]
        placed = set(map(id, self.deepest))
        lines += [f"  {operation}" for operation in self.operations]
        lines += ["the longest beginning of an order:", *(f"  {operation}" for operation in self.deepest)]
        lines += ["and no place for:"]
        lines += [f"  {one}" for one in self.operations if id(one) not in placed and one.returned is not None]
        return "\n".join(lines)


def step(state: State, operation: Operation) -> tuple[bool, State]:
    """Whether a key in this state could have answered so, and its state afterwards."""
    known = operation.returned is not None
    match operation.kind:
        case "get":
            return not known or operation.result == state, state
        case "put":
            return True, operation.value
        case "delete":
            return not known or operation.result == (state is not None), None
        case "cas":
            done = state == operation.expected
            return not known or operation.result == done, operation.value if done else state


def check(history: Iterable[Operation], steps_max: int = STEPS_MAX) -> Violation | None:
    """Return the first violation of a history that began with every key absent, or None if it is linearizable.

    Raises:
        Undecided: one key's search takes more than `steps_max` steps.
    """
    by_key: dict[bytes, list[Operation]] = {}
    for operation in history:
        assert operation.returned is None or operation.called < operation.returned
        if operation.returned is not None or operation.kind != "get":  # a read without an answer says nothing
            by_key.setdefault(operation.key, []).append(operation)
    for key, operations in by_key.items():
        operations.sort(key=lambda one: one.called)
        deepest = _search(operations, steps_max)
        if deepest is not None:
            return Violation(key, tuple(operations), tuple(deepest))
    return None


@dataclass(eq=False, slots=True)
class _Event:
    """A call or an end, in a doubly linked list in the order of time; `end` of a call is its end, if it has one."""

    number: int = -1
    end: _Event | None = None
    is_call: bool = False
    before: _Event | None = field(default=None, repr=False)
    after: _Event | None = field(default=None, repr=False)

    def lift(self) -> None:
        """Take an event out of the list; it keeps its neighbours, so that `put_back` knows its place."""
        assert self.before is not None
        self.before.after = self.after
        if self.after is not None:
            self.after.before = self.before

    def put_back(self) -> None:
        assert self.before is not None
        self.before.after = self
        if self.after is not None:
            self.after.before = self


def _events(operations: list[Operation]) -> _Event:
    """The list of all events, behind a head that is none."""
    moments: list[tuple[int, _Event]] = []
    for number, operation in enumerate(operations):
        end = None
        if operation.returned is not None:
            end = _Event(number)
            moments.append((operation.returned, end))
        moments.append((operation.called, _Event(number, end, is_call=True)))
    moments.sort(key=lambda moment: moment[0])
    head = last = _Event()
    for _, event in moments:
        last.after, event.before = event, last
        last = event
    return head


def _search(operations: list[Operation], steps_max: int) -> list[Operation] | None:
    """None if the operations of one key have a valid order, else the longest beginning of one."""
    head = _events(operations)
    state: State = None
    done = 0  # a bit for each operation that has its place
    open_ends = sum(operation.returned is not None for operation in operations)
    seen: set[tuple[int, State]] = set()
    order: list[tuple[_Event, State]] = []  # each with the state before it
    deepest: list[Operation] = []
    event = head.after
    for _ in range(steps_max):
        if not open_ends:
            return None
        assert event is not None, "an operation without its place has an end in the list"
        if event.is_call:
            legal, after = step(state, operations[event.number])
            reached = (done | 1 << event.number, after)
            if legal and reached not in seen:
                seen.add(reached)
                order.append((event, state))
                done, state = reached
                event.lift()
                if event.end is not None:
                    event.end.lift()
                    open_ends -= 1
                if len(order) > len(deepest):
                    deepest = [operations[placed.number] for placed, _ in order]
                event = head.after
            else:
                event = event.after
            continue
        if not order:
            return deepest
        event, state = order.pop()
        done ^= 1 << event.number
        if event.end is not None:
            event.end.put_back()
            open_ends += 1
        event.put_back()
        event = event.after
    raise Undecided(f"{len(operations)} operations: more than {steps_max} steps")
