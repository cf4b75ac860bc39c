"""Sessions: made with what they stand on, shown, renewed, ended."""

from __future__ import annotations

from typing import Final

from homeport.client.core import wire
from homeport.registry.core import keys
from homeport.registry.core.sessions import (
    LOCK_DELAY_S_DEFAULT,
    TTL_S_MAX,
    TTL_S_MIN,
    Behaviour,
    Session,
    check_status,
)
from homeport.registry.fronts.consul import bodies, shapes
from homeport.registry.fronts.consul.agent import Agent
from homeport.registry.fronts.consul.answers import YES, Answer, Refusal
from homeport.registry.fronts.consul.calls import Call
from homeport.registry.fronts.consul.durations import parse_duration
from homeport.registry.fronts.consul.itself import SERF_HEALTH
from homeport.registry.fronts.consul.waiting import Keys, Resource, SessionsOf

_BARE_SECONDS_BELOW: Final = 1000  # a lock delay of fewer nanoseconds means seconds, as in Consul
_BEHAVIOURS: Final[dict[str, Behaviour]] = {"": "release", "release": "release", "delete": "delete"}


async def create(call: Call) -> Answer:
    """Make a session; nothing in the body is needed."""
    agent = call.agent
    asked: shapes.SessionDefinition = call.payload
    node = asked.node or agent.node
    if node != agent.node and node not in agent.catalogue.nodes:
        raise Refusal(500, f"Missing node registration: {node!r}")
    behaviour = _BEHAVIOURS.get(asked.behavior)
    if behaviour is None:
        raise Refusal(500, f"Invalid Behavior setting {asked.behavior!r}; allowed: release, delete")
    node_checks, service_checks = _checks(asked)
    session = Session(
        id=agent.new_id(),
        node=node,
        lease=agent.store.new_lease(),
        name=asked.name,
        behaviour=behaviour,
        ttl_s=_ttl_s(asked.ttl),
        ttl=asked.ttl,
        lock_delay_s=_lock_delay_s(asked.lock_delay),
        node_checks=node_checks,
        service_checks=service_checks,
        follows=_follows(agent, node, [*node_checks, *(id_ for id_, _ in service_checks or ())]),
    )
    if not await agent.sessions.create(session):
        raise Refusal(500, "A check of the session is critical or gone")
    return Answer(body=bodies.encode(shapes.SessionId(session.id)))


async def destroy(call: Call) -> Answer:
    """End a session; one that is gone is ended already."""
    await call.agent.sessions.destroy(call.name)
    return YES


async def renew(call: Call) -> Answer:
    """Start a session's TTL anew."""
    session = await call.agent.sessions.renew(call.name)
    if session is None:
        raise Refusal(404, f"Session id {call.name!r} not found")
    return Answer(body=bodies.encode([_shown(call.agent, session)]))


def info(call: Call) -> Answer:
    """One session, in a list; an empty one if it is not there."""
    session = call.agent.sessions.find(call.name)
    return _answer(call, one(call), [session] if session else [])


def of_node(call: Call) -> Answer:
    return _answer(call, node(call), [one for one in _all(call.agent) if one.node == call.name])


def all_of_them(call: Call) -> Answer:
    return _answer(call, everything(call), _all(call.agent))


def one(call: Call) -> Resource:
    return Keys(call.agent.store, call.agent.session_indexes, keys.session(call.name), None)


def everything(call: Call) -> Resource:
    return Keys(call.agent.store, call.agent.session_indexes, keys.SESSIONS, keys.prefix_end(keys.SESSIONS))


def node(call: Call) -> Resource:
    return SessionsOf(call.agent, call.name)


def _answer(call: Call, resource: Resource, found: list[Session]) -> Answer:
    return Answer(body=bodies.encode([_shown(call.agent, session) for session in found]), index=resource.index())


def _all(agent: Agent) -> list[Session]:
    mvcc = agent.store.mvcc
    found = (mvcc.get(key) for key in mvcc.keys(keys.SESSIONS, keys.prefix_end(keys.SESSIONS)))
    return [wire.decode(Session, kv.value) for kv in found if kv is not None]


def _shown(agent: Agent, session: Session) -> shapes.Session:
    kv = agent.store.mvcc.get(keys.session(session.id))
    assert kv is not None
    return shapes.Session(
        id=session.id,
        name=session.name,
        node=session.node,
        lock_delay=round(session.lock_delay_s * 1e9),
        behavior=session.behaviour,
        ttl=session.ttl,
        node_checks=session.node_checks,
        service_checks=None
        if session.service_checks is None
        else [shapes.ServiceCheck(id_, namespace) for id_, namespace in session.service_checks],
        create_index=kv.create_revision,
        modify_index=kv.mod_revision,
    )


def _checks(asked: shapes.SessionDefinition) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...] | None]:
    """The CheckIDs as asked for: the older `Checks` are node checks; none named at all means serfHealth."""
    named = asked.node_checks if asked.node_checks is not None else asked.checks
    node_checks = (SERF_HEALTH,) if named is None else tuple(dict.fromkeys([*named, *(asked.checks or [])]))
    if asked.service_checks is None:
        return node_checks, None
    return node_checks, tuple((check.id, check.namespace) for check in asked.service_checks)


def _follows(agent: Agent, node_name: str, check_ids: list[str]) -> tuple[tuple[str, str], ...]:
    """The checks that go by these CheckIDs on a node. The agent's own node has a serfHealth that nothing ends.

    Raises:
        Refusal: 500, as in Consul; one is not there, or critical.
    """
    follows = {} if node_name == agent.node else {("", ""): True}
    for check_id in check_ids:
        if check_id == SERF_HEALTH and node_name == agent.node:
            continue
        found = agent.check(node_name, check_id)
        if found is None:
            raise Refusal(500, f"Missing check {check_id!r} registration")
        (_, id_), name = found
        status = check_status(agent.catalogue, node_name, id_, name)
        if status not in ("passing", "warning"):
            raise Refusal(500, f"Check {check_id!r} is in {status or 'critical'} state")
        follows[id_, name] = True
    return tuple(follows)


def _ttl_s(text: str) -> float:
    try:
        ttl_s = parse_duration(text) if text else 0.0
    except ValueError as error:
        raise Refusal(500, f"Session TTL {text!r} invalid: {error}") from None
    if ttl_s and not TTL_S_MIN <= ttl_s <= TTL_S_MAX:
        raise Refusal(500, f"Invalid Session TTL {text!r}, must be between [10s=24h0m0s]")
    return ttl_s


def _lock_delay_s(given: str | float | None) -> float:
    """A duration, or nanoseconds; fewer than a thousand of them are seconds."""
    if given is None:
        return LOCK_DELAY_S_DEFAULT
    try:
        nanoseconds = parse_duration(given) * 1e9 if isinstance(given, str) else float(given)
    except ValueError as error:
        raise Refusal(400, f"Request decode failed: LockDelay: {error}") from None
    return nanoseconds if nanoseconds < _BARE_SECONDS_BELOW else nanoseconds / 1e9
