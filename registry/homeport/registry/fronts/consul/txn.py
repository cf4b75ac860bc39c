"""Transactions: operations run in order on one revision, and committed together or not at all.

What an operation must not do is an error with its place, and all such are told. Reads alone write nothing and are
answered from the revision at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from homeport.client.core.model import KeyValue
from homeport.registry.core import kv_verbs
from homeport.registry.core.kv_verbs import KvOperation, Seen, VerbFailed
from homeport.registry.core.overlay import PENDING, Overlay
from homeport.registry.core.user_keys import UserKey
from homeport.registry.fronts.consul import bodies, catalog_verbs, kv, shapes, writes
from homeport.registry.fronts.consul.agent import Agent
from homeport.registry.fronts.consul.answers import Answer, Refusal
from homeport.registry.fronts.consul.calls import NUMBER_MAX, Call

OPERATIONS_MAX: Final = 128  # Consul's
Result = Seen | catalog_verbs.Shown


async def transaction(call: Call) -> Answer:
    """Carry out the operations, or say which of them stand against it."""
    operations: list[writes.TxnOperation] = call.payload
    if len(operations) > OPERATIONS_MAX:
        raise Refusal(413, f"Transaction contains too many operations ({len(operations)} > {OPERATIONS_MAX})")
    for operation in operations:
        _check(operation)
    agent = call.agent
    while True:
        outcome, done = await agent.sessions.decide(lambda overlay: _attempt(agent, overlay, operations))
        if isinstance(outcome, _Abandoned):
            await agent.sessions.settled(outcome.session)
        elif isinstance(outcome, _Failed):
            return Answer(status=409, body=bodies.encode(shapes.TxnOutcome(errors=outcome.errors)))
        else:
            revision = done.revision if done else 0
            results: list[object] = [_shape(result, revision) for result in outcome]
            return Answer(body=bodies.encode(shapes.TxnOutcome(results=results)))


class _Failed(msgspec.Struct, frozen=True):
    errors: list[shapes.TxnError]


class _Abandoned(msgspec.Struct, frozen=True):
    session: str


def _attempt(
    agent: Agent, overlay: Overlay, operations: list[writes.TxnOperation]
) -> list[Result] | _Failed | _Abandoned:
    results: list[Result] = []
    errors: list[shapes.TxnError] = []
    for number, operation in enumerate(operations):
        try:
            results += _run(agent, overlay, operation)
        except VerbFailed as failed:
            if failed.abandoned:
                overlay.discard()
                return _Abandoned(failed.abandoned)
            errors.append(shapes.TxnError(number, str(failed)))
    if errors:
        overlay.discard()
        return _Failed(errors)
    return results


def _run(agent: Agent, overlay: Overlay, operation: writes.TxnOperation) -> Sequence[Result]:
    if operation.kv is not None:
        asked = operation.kv
        return list(
            kv_verbs.run(
                overlay,
                KvOperation(
                    verb=asked.verb,
                    key=asked.key.encode(),
                    value=asked.value,
                    flags=asked.flags,
                    index=asked.index,
                    session=asked.session,
                ),
            )
        )
    if operation.node is not None:
        return catalog_verbs.on_node(agent, overlay, operation.node)
    if operation.service is not None:
        return catalog_verbs.on_service(agent, overlay, operation.service)
    assert operation.check is not None
    return catalog_verbs.on_check(agent, overlay, operation.check)


def _check(operation: writes.TxnOperation) -> None:
    """Refuse what cannot be meant, before anything is done."""
    given = [name for name in ("kv", "node", "service", "check") if getattr(operation, name) is not None]
    if len(given) != 1:
        raise Refusal(400, "Each operation must have one of KV, Node, Service and Check")
    if operation.kv is not None:
        for name in ("flags", "index"):
            if not 0 <= getattr(operation.kv, name) <= NUMBER_MAX:
                raise Refusal(400, f"{name} of key {operation.kv.key!r} is not an unsigned 64-bit number")
        size = len(operation.kv.value)
        if size > kv.KV_BYTES_MAX:
            raise Refusal(413, f"Value for key {operation.kv.key!r} is too large ({size} > {kv.KV_BYTES_MAX} bytes)")


def _shape(result: Result, revision: int) -> object:
    """A result as clients see it; what this transaction wrote is at its revision."""
    if not isinstance(result, Seen):
        return catalog_verbs.settled(result, revision)
    found = result.key.kv
    shown = KeyValue(
        found.key,
        found.value if result.with_value else b"",
        revision if found.create_revision == PENDING else found.create_revision,
        revision if found.mod_revision == PENDING else found.mod_revision,
        found.version,
        found.lease,
    )
    return shapes.TxnKv(kv.shape(UserKey(shown, result.key.details)))
