"""The catalogue, which follows changes, against one that is computed anew from all keys after every revision."""

from __future__ import annotations

from typing import Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeport.client.core import wire
from homeport.client.core.messages import Resolved
from homeport.client.core.model import SEVERITY, Check, Instance, InstanceKey, ServiceEvent, Status
from homeport.registry.core import keys
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.entries import CheckRecord
from homeport.registry.core.head import Head
from homeport.registry.core.limits import PAGE_BYTES
from homeport.registry.core.mvcc import Mvcc
from homeport.registry.core.pages import snapshot
from homeport.registry.core.txn import Delete, Op, Put, Range, Txn

DELETIONS_MAX: Final = 2  # so that forgetting them is part of every run
SERVICES: Final = ("orders", "users", "a/b %", "search", "feed")
IDS: Final = ("1", "2", "3/x")
CHECKS: Final = (
    Check(name="probe", kind="tcp", address="127.0.0.1:1", initial="warning"),
    Check(name="beat", kind="ttl", ttl_s=5.0, initial="passing"),
)
NODE: Final = "node 1"

ids = st.sampled_from(IDS)
registrations = st.tuples(
    st.just("register"),
    ids,
    st.sampled_from(SERVICES),
    st.builds(
        Instance,
        service=st.just(""),
        id=st.just(""),
        node=st.just(NODE),
        tags=st.sampled_from(((), ("blue",), ("blue", "green"))),
        port=st.sampled_from((80, 81)),
        checks=st.sampled_from(((), CHECKS[:1], CHECKS[1:], CHECKS)),
        state=st.sampled_from(("up", "up", "up", "draining", "maintenance")),
    ),
)
records = st.builds(CheckRecord, st.sampled_from(("passing", "warning", "critical")), st.sampled_from(("", "why")))
statuses = st.tuples(st.just("check"), ids, st.sampled_from(("probe", "beat", "refused")), records)
nodes = st.builds(
    Instance,
    service=st.just(""),
    id=st.just(""),
    node=st.just(NODE),
    address=st.sampled_from(("10.0.0.1", "10.0.0.2")),
    checks=st.sampled_from(((), CHECKS[:1])),
    state=st.sampled_from(("up", "up", "maintenance")),
)
steps = st.lists(
    st.lists(
        st.one_of(
            registrations,
            registrations,
            st.tuples(st.just("deregister"), ids),
            st.tuples(st.just("deregister whole"), ids),
            statuses,
            statuses,
            st.tuples(st.just("silence"), ids, st.sampled_from(("probe", "beat", "refused"))),
            st.tuples(st.just("node"), st.just(""), nodes),
            st.tuples(st.just("node gone"), st.just("")),
            st.tuples(st.just("check"), st.just(""), st.sampled_from(("probe", "disk")), records),
            st.tuples(st.just("silence"), st.just(""), st.sampled_from(("probe", "disk"))),
            st.tuples(st.just("unrelated")),
        ),
        min_size=1,
        max_size=2,
        unique_by=lambda step: step[1] if len(step) > 1 else "",
    ),
    max_size=25,
)

# By service: the instances that look different or are new, and those that are gone.
Differences = dict[str, tuple[dict[InstanceKey, Instance], set[InstanceKey]]]


class Naive:
    """Everything recomputed from all keys; beside the keys it remembers only when anything of a name was touched."""

    def __init__(self, mvcc: Mvcc) -> None:
        self.mvcc = mvcc
        self.seen: dict[tuple[str, InstanceKey], Instance] = {}
        self.touched: dict[InstanceKey, int] = {}
        self.indexes: dict[str, int] = {}  # of services that are there
        self.deleted: dict[str, int] = {}  # of services that are not, oldest deletion first
        self.floor = 1

    def records(self, key: InstanceKey) -> dict[str, CheckRecord]:
        prefix = keys.checks_of(*key)
        found = self.mvcc.range(Range(prefix, keys.prefix_end(prefix))).entries
        return {keys.split(kv.key)[2]: wire.decode(CheckRecord, kv.value) for kv in found}

    def node(self) -> Instance | None:
        kv = self.mvcc.get(keys.node(NODE))
        return None if kv is None else wire.decode(Instance, kv.value)

    def status(self, instance: Instance) -> Status:
        own = self.own_status(instance)
        node = self.node() or Instance(service="", id="", node=NODE)
        return max((own, self.own_status(node)), key=SEVERITY.__getitem__)

    def own_status(self, instance: Instance) -> Status:
        if instance.state == "maintenance":
            return "maintenance"
        records = self.records(instance.key)
        found: list[Status] = [record.status for record in records.values()]
        unwritten = [check for check in instance.checks if check.name not in records]
        found += ["critical" if check.kind == "ttl" else check.initial for check in unwritten]
        return max(found, key=SEVERITY.__getitem__, default="passing")

    def compute(self) -> dict[tuple[str, InstanceKey], Instance]:
        computed = {}
        for kv in self.mvcc.range(Range(keys.INSTANCES, keys.prefix_end(keys.INSTANCES))).entries:
            service, node, id_ = keys.split(kv.key)
            instance = wire.decode(Instance, kv.value)
            computed[service, (node, id_)] = msgspec.structs.replace(
                instance,
                status=self.status(instance),
                create_revision=kv.create_revision,
                mod_revision=self.touched[node, id_],
            )
        return computed

    def apply(self, revision: int, written: list[bytes]) -> Differences:
        """The differences that this revision made, by service."""
        for key in written:
            parts = keys.split(key)
            if key.startswith(keys.INSTANCES):
                self.touched[parts[1], parts[2]] = revision
            elif key.startswith(keys.CHECKS):
                self.touched[parts[0], parts[1]] = revision
            elif key.startswith(keys.NODES):
                self.touched[parts[0], ""] = revision
        if self.touched.get((NODE, "")) == revision:
            present = self.mvcc.range(Range(keys.INSTANCES, keys.prefix_end(keys.INSTANCES))).entries
            self.touched |= {(node, id_): revision for _, node, id_ in (keys.split(kv.key) for kv in present)}
        before, self.seen = self.seen, self.compute()
        differences: Differences = {}
        for at in before.keys() - self.seen.keys():
            differences.setdefault(at[0], ({}, set()))[1].add(at[1])
        for at, instance in self.seen.items():
            old = before.get(at)
            if old is None or msgspec.structs.replace(old, mod_revision=instance.mod_revision) != instance:
                differences.setdefault(at[0], ({}, set()))[0][at[1]] = instance
        for service, instance_key in before.keys() | self.seen.keys():
            if self.touched[instance_key] == revision:
                self.indexes[service] = revision
        names = {service for service, _ in self.seen}
        for service in [name for name in self.indexes if name not in names]:
            self.deleted[service] = self.indexes.pop(service)
        for service in names:
            self.deleted.pop(service, None)
        while len(self.deleted) > DELETIONS_MAX:
            self.floor = self.deleted.pop(next(iter(self.deleted)))
        return differences


class Followed:
    """A store's core with a catalogue that follows it, checked after each revision."""

    def __init__(self) -> None:
        self.mvcc = Mvcc()
        self.head = Head(self.mvcc)
        self.catalogue = Catalogue(DELETIONS_MAX)
        self.naive = Naive(self.mvcc)
        self.service_of: dict[str, str] = {}
        self.list_of_nodes: tuple[object, ...] = (False, None, "")
        self.indexes = dict.fromkeys((*SERVICES, "never"), 1)

    def ops(self, step: tuple[object, ...]) -> list[Op]:
        match step:
            case ("register", str(id_), str(service), Instance() as drawn):
                instance = msgspec.structs.replace(drawn, service=service, id=id_)
                old = self.service_of.get(id_)
                self.service_of[id_] = service
                moved = [Delete(keys.instance(old, NODE, id_))] if old not in (None, service) else []
                return [*moved, Put(keys.instance(service, NODE, id_), wire.encode(instance))]
            case ("deregister", str(id_)):  # its statuses stay, as late ones would
                old = self.service_of.pop(id_, None)
                return [Delete(keys.instance(old, NODE, id_))] if old else []
            case ("deregister whole", str(id_)):
                prefix = keys.checks_of(NODE, id_)
                old = self.service_of.pop(id_, None)
                gone = [Delete(keys.instance(old, NODE, id_))] if old else []
                return [*gone, Delete(prefix, keys.prefix_end(prefix))]
            case ("check", str(id_), str(name), CheckRecord() as record):
                return [Put(keys.check(NODE, id_, name), wire.encode(record))]
            case ("node", _, Instance() as node):
                return [Put(keys.node(NODE), wire.encode(node))]
            case ("node gone", _):
                return [Delete(keys.node(NODE))]
            case ("silence", str(id_), str(name)):
                return [Delete(keys.check(NODE, id_, name))]
        return [Put(b"k/unrelated", b"")]

    def run(self, revision_steps: list[tuple[object, ...]]) -> None:
        changes = self.head.decide(Txn(then=tuple(op for step in revision_steps for op in self.ops(step)))).changes
        if not changes:
            return
        revision = self.head.revision
        self.mvcc.apply(revision, changes)
        self.head.settle(revision, changes)
        tags_before = self.catalogue.tags()
        list_index_before = self.catalogue.index
        events = self.catalogue.apply(revision, changes)
        self.expect_events(events, self.naive.apply(revision, [change.key for change in changes]))
        self.expect_state()
        self.expect_nodes(revision, [change.key for change in changes])
        assert self.catalogue.revision == revision
        assert list_index_before <= self.catalogue.index <= revision
        if self.catalogue.tags() != tags_before:
            assert self.catalogue.index == revision

    def expect_events(self, events: list[ServiceEvent], differences: Differences) -> None:
        assert len({event.service for event in events}) == len(events)
        found = {event.service: ({one.key: one for one in event.changed}, set(event.removed)) for event in events}
        assert found == differences
        for event in events:
            assert event.revision == self.mvcc.revision
            assert not event.snapshot
            assert not event.more
            assert len(event.changed) + len(event.removed) == sum(map(len, differences[event.service]))

    def expect_nodes(self, revision: int, written: list[bytes]) -> None:
        catalogue, registered = self.catalogue, self.naive.node()
        here = {key[1]: service for service, key in self.naive.seen}
        shown = catalogue.nodes.get(NODE)
        concerned = any(key.startswith((keys.INSTANCES, keys.NODES)) for key in written)
        if registered is None and not here:
            assert shown is None
            node_index = catalogue.index_of_node(NODE)
        else:
            assert shown is not None
            assert shown.ids == here
            entry = catalogue.find(NODE, "")
            assert (entry is None) == (registered is None)
            if entry is not None and registered is not None:
                assert msgspec.structs.replace(entry.registered, create_revision=0, mod_revision=0) == registered
            first = here and self.naive.seen[here[min(here)], (NODE, min(here))]
            assert shown.address == (registered.address if registered else first.address if first else "")
            node_index = shown.index
            assert (shown.index == revision) >= concerned
        list_of_nodes = (shown is not None, registered, shown.address if shown else "")
        if list_of_nodes != self.list_of_nodes:
            assert catalogue.nodes_index == revision
        self.list_of_nodes = list_of_nodes
        for name, index in (("node", node_index), ("nodes", catalogue.nodes_index), ("checks", catalogue.checks_index)):
            assert self.indexes.get(name, 1) <= index <= revision, f"the index of {name} went backwards"
            self.indexes[name] = index
        if any(key.startswith((keys.CHECKS, keys.NODES)) for key in written):
            assert catalogue.checks_index == revision

    def expect_state(self) -> None:
        catalogue, naive = self.catalogue, self.naive
        assert set(catalogue.services) == {service for service, _ in naive.seen}
        for (service, key), instance in naive.seen.items():
            entry = catalogue.find(*key)
            assert entry is not None
            assert entry.seen == instance
            assert entry.registered.service == service
        for id_ in IDS:
            records = naive.records((NODE, id_))
            assert sorted(catalogue.checks.of((NODE, id_))) == sorted(records)
            for name in ("probe", "beat", "refused"):
                assert catalogue.checks.one((NODE, id_), name) == records.get(name)
            if id_ not in self.service_of:
                assert catalogue.find(NODE, id_) is None
        for name in (*SERVICES, "never"):
            index = catalogue.index_of(name)
            assert index == naive.indexes.get(name, max(naive.deleted.get(name, 0), naive.floor))
            assert index >= self.indexes[name], "an index went backwards"
            self.indexes[name] = index
            members = sorted((key, instance) for (service, key), instance in naive.seen.items() if service == name)
            for passing in (True, False):
                answer = wire.decode(Resolved, catalogue.resolved(name, passing))
                wanted = tuple(one for _, one in members if one.available or not passing)
                assert answer == Resolved(index, wanted)
            expected = tuple(sorted({tag for _, instance in members for tag in instance.tags}))
            assert catalogue.tags().get(name, ()) == expected


@settings(max_examples=150, deadline=None, derandomize=True, print_blob=True)
@given(steps)
def test_the_catalogue_is_what_its_keys_say_after_every_revision(revisions: list[list[tuple[object, ...]]]) -> None:
    followed = Followed()
    for revision_steps in revisions:
        followed.run(revision_steps)


@pytest.mark.long
@settings(max_examples=3_000, deadline=None, print_blob=True)
@given(steps)
def test_the_catalogue_is_what_its_keys_say_on_new_steps(revisions: list[list[tuple[object, ...]]]) -> None:
    followed = Followed()
    for revision_steps in revisions:
        followed.run(revision_steps)


def register(followed: Followed, id_: str, service: str, **fields: object) -> None:
    followed.run([("register", id_, service, Instance(service="", id="", node=NODE, **fields))])  # type: ignore[arg-type]


def test_a_ttl_check_that_falls_silent_makes_its_instance_critical_and_newer() -> None:
    followed = Followed()
    register(followed, "1", "orders", checks=CHECKS[1:])
    followed.run([("check", "1", "beat", CheckRecord("passing"))])
    (before,) = followed.catalogue.services["orders"].instances(passing=True)
    followed.run([("silence", "1", "beat")])
    (after,) = followed.catalogue.services["orders"].instances(passing=False)
    assert after.status == "critical"
    assert after.mod_revision == before.mod_revision + 1


def test_an_absent_name_never_answers_an_older_index_than_before() -> None:
    followed = Followed()
    for number, service in enumerate(SERVICES):
        register(followed, "1", service)
        register(followed, "2", service, port=number)
        followed.run([("deregister", "1"), ("deregister", "2")])
    deleted = [followed.catalogue.index_of(service) for service in SERVICES]
    assert deleted == sorted(deleted)
    assert deleted[:-DELETIONS_MAX] == [followed.catalogue.floor] * (len(SERVICES) - DELETIONS_MAX)
    assert followed.catalogue.index_of("never") == followed.catalogue.floor > 1


def test_answers_are_encoded_once_per_change_and_kept_for_no_offset_but_the_first() -> None:
    followed = Followed()
    register(followed, "1", "orders")
    catalogue = followed.catalogue
    assert catalogue.resolved("orders", True) is catalogue.resolved("orders", True)
    for offset in range(1, 100):
        assert wire.decode(Resolved, catalogue.resolved("orders", True, offset)).instances == ()
    assert len(catalogue.services["orders"].answers) <= 2
    before = catalogue.resolved("orders", True)
    register(followed, "2", "orders")
    assert catalogue.resolved("orders", True) != before


def test_large_services_come_in_pages_that_fit_and_miss_nobody() -> None:
    followed = Followed()
    filler = {"filler": "x" * 4_000}
    ids_ = [f"{number:03}" for number in range(600)]
    for id_ in ids_:
        registration = wire.encode(Instance(service="orders", id=id_, node=NODE, meta=filler))
        changes = followed.head.decide(Txn(then=(Put(keys.instance("orders", NODE, id_), registration),))).changes
        followed.mvcc.apply(followed.head.revision, changes)
        followed.head.settle(followed.head.revision, changes)
        followed.catalogue.apply(followed.head.revision, changes)
    found: list[str] = []
    page = Resolved(0, (), more=True)
    while page.more:
        data = followed.catalogue.resolved("orders", True, len(found))
        assert len(data) <= PAGE_BYTES + 100  # the page's own envelope
        page = wire.decode(Resolved, data)
        assert page.revision == followed.catalogue.index_of("orders")
        found += [instance.id for instance in page.instances]
    assert found == ids_
    events = snapshot(followed.catalogue.services["orders"], "orders", followed.catalogue.revision)
    assert [instance.id for event in events for instance in event.changed] == ids_
    assert [event.snapshot for event in events] == [True] + [False] * (len(events) - 1)
    assert [event.more for event in events] == [True] * (len(events) - 1) + [False]
    assert len(events) > 1


def test_the_snapshot_of_an_absent_service_is_one_empty_event() -> None:
    assert snapshot(None, "orders", 5) == [ServiceEvent(service="orders", revision=5, snapshot=True)]
