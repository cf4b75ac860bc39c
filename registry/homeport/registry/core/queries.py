"""Prepared queries: a question about a service under a name of its own, to be asked by that name alone.

A query is kept under `q/<id>` as it is shown, and its name under `q/name/<name>` (or, for a template, which answers to
every name that starts like its own, under `q/template/<name>`), all on its session's lease if it has one: they go in
the same revision as the session. Names are compared without case, as DNS does. Of several templates the one with the
longest name answers.

In a template, every text of `Service` may hold `${name.full}`, `${name.prefix}`, `${name.suffix}` and `${match(N)}`,
what the expression in `Regexp` found in the name: all of it (0) or its N-th group. `$${` stands for `${`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from homeport.client.core import wire
from homeport.client.core.errors import InvalidArgument, NotFound
from homeport.client.core.model import Status
from homeport.client.core.patterns import Pattern
from homeport.registry.core import keys
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.overlay import Overlay
from homeport.registry.core.sessions import Session

NAME_CHARS_MAX: Final = 253  # as long as a name in DNS: nobody could ask for a longer one
TEMPLATE: Final = "name_prefix_match"
LISTED_MAX: Final = 64  # tags, checks, metadata and datacenters of one query


class Template(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    type: str = ""
    regexp: str = ""
    remove_empty_tags: bool = False


class Target(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    datacenter: str = ""
    peer: str = ""
    partition: str = ""
    namespace: str = ""


class Failover(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    nearest_n: int = 0
    datacenters: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()


class Asked(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Which instances are wanted."""

    service: str = ""
    failover: Failover = Failover()
    only_passing: bool = False
    ignore_check_ids: tuple[str, ...] = msgspec.field(default=(), name="IgnoreCheckIDs")
    near: str = ""
    tags: tuple[str, ...] = ()  # those with a ! in front are not wanted
    node_meta: dict[str, str] = {}
    service_meta: dict[str, str] = {}
    connect: bool = False


class Dns(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    ttl: str = msgspec.field(default="", name="TTL")


class Query(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What stands under `q/<id>`; the indexes are those of its key and stand nowhere."""

    id: str = msgspec.field(default="", name="ID")
    name: str = ""
    session: str = ""
    token: str = ""  # never kept
    template: Template = Template()
    service: Asked = Asked()
    dns: Dns = msgspec.field(default=Dns(), name="DNS")
    create_index: int = 0
    modify_index: int = 0


# --- what may be asked ------------------------------------------------------------------------------------------


def expect_valid(query: Query) -> None:
    """Everything that can be said of a query without knowing of others.

    Raises:
        InvalidArgument: something of it cannot be; the message says what is allowed.
    """
    asked, template = query.service, query.template
    if not asked.service:
        raise _invalid("Must provide a Service name to query")
    if not (query.name or template.type or query.session):
        raise _invalid("Must be bound to a session, or have a Name")
    if len(query.name) > NAME_CHARS_MAX:
        raise _invalid(f"Name of {len(query.name)} characters; allowed: {NAME_CHARS_MAX}")
    if asked.failover.nearest_n < 0:
        raise _invalid(f"Bad NearestN {asked.failover.nearest_n}, must be >= 0")
    lists = (asked.tags, asked.ignore_check_ids, asked.node_meta, asked.service_meta, asked.failover.datacenters)
    if max(map(len, (*lists, asked.failover.targets))) > LISTED_MAX:
        raise _invalid(f"a list of more than {LISTED_MAX}")
    if asked.connect:
        raise _invalid("Connect is not supported: there is no service mesh of Consul's kind")
    if any(target.peer for target in asked.failover.targets):
        raise _invalid("Failover.Targets: Peer is not supported: there are no cluster peerings")
    if template.type not in ("", TEMPLATE):
        raise _invalid(f"Bad Template.Type {template.type!r}; allowed: {TEMPLATE}")
    if template.type:
        rendered(query, query.name)
    elif template.regexp or template.remove_empty_tags:
        raise _invalid(f"Template needs its Type: {TEMPLATE}")


def _invalid(what: str) -> InvalidArgument:
    return InvalidArgument(f"Invalid prepared query: {what}", field="query")


# --- keeping them -----------------------------------------------------------------------------------------------


def store(overlay: Overlay, query: Query, *, new: bool) -> None:
    """Write a query, checked by `expect_valid`, and its name.

    Raises:
        NotFound: it is to be changed and is not there.
        InvalidArgument: its name is another's, or its session is gone.
    """
    old = overlay.get(keys.query(query.id))
    if new == (old is not None):
        raise NotFound(f"Cannot modify non-existent prepared query: {query.id!r}")
    lease = 0
    if query.session:
        session = overlay.get(keys.session(query.session))
        if session is None:
            raise _invalid(f"invalid session {query.session!r}")
        lease = wire.decode(Session, session.value).lease
    name_key = _name_key(query)
    if old is not None:
        old_key = _name_key(wire.decode(Query, old.value))
        if old_key and old_key != name_key:
            overlay.delete(old_key)
    if name_key:
        owner = overlay.get(name_key)
        if owner is not None and owner.value.decode() != query.id:
            raise _invalid(f"Name {query.name!r} is that of another {'template' if query.template.type else 'query'}")
        if overlay.get(keys.query(query.name)) is not None:
            raise _invalid(f"Name {query.name!r} is the ID of another query")
        overlay.put(name_key, query.id.encode(), lease)
    overlay.put(keys.query(query.id), wire.encode(query), lease)


def remove(overlay: Overlay, id_: str) -> None:
    """Delete a query and its name.

    Raises:
        NotFound: it is not there.
    """
    found = overlay.get(keys.query(id_))
    if found is None:
        raise NotFound(f"Cannot modify non-existent prepared query: {id_!r}")
    name_key = _name_key(wire.decode(Query, found.value))
    if name_key:
        overlay.delete(name_key)
    overlay.delete(found.key)


def _name_key(query: Query) -> bytes:
    if query.template.type:
        return keys.query_template(query.name.lower())
    return keys.query_name(query.name.lower()) if query.name else b""


# --- finding them -----------------------------------------------------------------------------------------------


def find(mvcc: Mvcc, id_: str) -> Query | None:
    """A query by its id."""
    kv = mvcc.get(keys.query(id_))
    if kv is None:
        return None
    query = wire.decode(Query, kv.value)
    return msgspec.structs.replace(query, create_index=kv.create_revision, modify_index=kv.mod_revision)


def every(mvcc: Mvcc) -> list[Query]:
    """All queries in the order of their ids."""
    ids = (keys.split(key) for key in mvcc.keys(keys.QUERIES, keys.prefix_end(keys.QUERIES)))
    return [query for names in ids if len(names) == 1 and (query := find(mvcc, names[0])) is not None]


def resolve(mvcc: Mvcc, asked: str) -> Query | None:
    """The query that answers to an id or a name, a template filled in for that name; None: there is none.

    Raises:
        InvalidArgument: the template comes to nothing that can be asked for that name.
    """
    if found := find(mvcc, asked):
        return found if not found.template.type else rendered(found, found.name)
    if len(asked) > NAME_CHARS_MAX:
        return None
    name = asked.lower()
    if exact := mvcc.get(keys.query_name(name)):
        return find(mvcc, exact.value.decode())
    for length in range(len(name), -1, -1):
        if prefix := mvcc.get(keys.query_template(name[:length])):
            found = find(mvcc, prefix.value.decode())
            return None if found is None else rendered(found, asked)
    return None


_INTERPOLATION: Final = re.compile(r"(\$?)\$\{([^}]*)(\}?)")
_MATCH: Final = re.compile(r"match\(\s*([0-9]{1,3})\s*\)")


def rendered(query: Query, name: str) -> Query:
    """A template filled in for a name.

    Raises:
        InvalidArgument: its expression or one of its interpolations is none; what is allowed is said.
    """
    regexp = query.template.regexp
    groups = (Pattern(regexp).groups(name) if regexp else None) or ()
    values = {"name.full": name, "name.prefix": query.name, "name.suffix": name[len(query.name) :], "agent.segment": ""}

    def value(found: re.Match[str]) -> str:
        literal, inner, closed = found.groups()
        if literal:
            return found[0][1:]
        text = inner.strip()
        if closed and text in values:
            return values[text]
        number = _MATCH.fullmatch(text) if closed else None
        if number is None:
            known = ", ".join(["match(N)", *values])
            raise _invalid(f"{found[0]!r} cannot be filled in; allowed between ${{ and }}: {known}")
        return groups[int(number[1])] if int(number[1]) < len(groups) else ""

    def fill(text: str) -> str:
        return _INTERPOLATION.sub(value, text)

    asked = query.service
    tags = tuple(fill(tag) for tag in asked.tags)
    filled = msgspec.structs.replace(
        asked,
        service=fill(asked.service),
        near=fill(asked.near),
        tags=tuple(tag for tag in tags if tag) if query.template.remove_empty_tags else tags,
        ignore_check_ids=tuple(map(fill, asked.ignore_check_ids)),
        node_meta={fill(key): fill(text) for key, text in asked.node_meta.items()},
        service_meta={fill(key): fill(text) for key, text in asked.service_meta.items()},
        failover=msgspec.structs.replace(asked.failover, datacenters=tuple(map(fill, asked.failover.datacenters))),
    )
    return msgspec.structs.replace(query, service=filled)


# --- whom they admit --------------------------------------------------------------------------------------------


def admits(
    asked: Asked,
    tags: Iterable[str],
    service_meta: dict[str, str],
    node_meta: dict[str, str],
    statuses: Iterable[Status],
) -> bool:
    """Whether an instance is one of those that are wanted.

    Args:
        statuses: those of its and its node's checks, without the ignored ones.
    """
    if any(status != "passing" and (asked.only_passing or status != "warning") for status in statuses):
        return False
    has = {tag.lower() for tag in tags}
    if any((tag[1:].lower() in has) if tag.startswith("!") else (tag.lower() not in has) for tag in asked.tags):
        return False
    return _has(service_meta, asked.service_meta) and _has(node_meta, asked.node_meta)


def _has(meta: dict[str, str], wanted: dict[str, str]) -> bool:
    return all(meta.get(key) == value for key, value in wanted.items())
