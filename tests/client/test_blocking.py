"""The client for code that blocks: the async one's names, in any thread, across forks, to the program's end."""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

import homeport.client as asynchronous
from homeport.client import (
    Closed,
    Instance,
    InvalidArgument,
    KvEvents,
    LeaseGone,
    ServiceEvent,
    Unavailable,
    WrongLoop,
    blocking,
)
from homeport.client.core.messages import LeaseRevoke
from homeport.registry import Registry, RegistryThread

# What has no twin, and why. A name that is here and has one, or does not exist, fails the test below.
WITHOUT_TWIN = {
    "Client": {
        "expect_usable": "for what is made of a client",
        "wait_relinked": "for registrations",
        "wait_link": "for leases",
        "go_elsewhere": "for registrations and leases",
        "link_epoch": "for registrations and leases",
    },
    "Lease": (LEASE := {"next_name": "for locks", "abandon": "for the client", "let_go": "for locks"}),
    "Session": LEASE,
    "Kv": {},
    "TypedKv": {},
    "Transaction": {},
    "Registration": {},
    "Resolver": {"begin": "the blocking one begins by itself"},
    "Subscription": {},
    **{name: {} for name in ("Barrier", "Claim", "DoubleBarrier", "Election", "Holding", "Lock", "Queue", "Semaphore")},
}


@pytest.fixture
def registry() -> Iterator[RegistryThread]:
    with Registry.in_thread(guard=False) as registry:
        yield registry


@pytest.fixture
def address(registry: RegistryThread) -> str:
    at = registry.serve(rpc="127.0.0.1:0").rpc
    assert at is not None
    return at


@pytest.fixture
def client(address: str) -> Iterator[blocking.Client]:
    with blocking.Client(address) as client:
        yield client


# --- the same names ---------------------------------------------------------------------------------------------


def public(owner: type) -> set[str]:
    return {name for name in dir(owner) if not name.startswith("_")}


def parameters(function: Any) -> list[tuple[str, inspect._ParameterKind, object]]:
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", sorted(WITHOUT_TWIN))
def test_every_async_method_has_a_blocking_twin_with_the_same_signature(name: str) -> None:
    ours, theirs = getattr(blocking, name), getattr(asynchronous, name)
    excepted = WITHOUT_TWIN[name]
    assert set(excepted) <= public(theirs) - public(ours), "an exception that is none any more"
    assert public(theirs) - set(excepted) <= public(ours), "a new method needs its twin"
    for each in sorted(public(theirs) - set(excepted)):
        their, our = inspect.getattr_static(theirs, each), inspect.getattr_static(ours, each)
        if isinstance(their, property):
            assert isinstance(our, property), f"{name}.{each}"
            continue
        if not callable(their):
            continue
        assert parameters(our) == parameters(their), f"{name}.{each}"
        assert not inspect.iscoroutinefunction(our), f"{name}.{each} must wait, not be awaited"
        assert not inspect.isasyncgenfunction(our), f"{name}.{each} must wait, not be awaited"


def test_every_class_of_what_an_async_client_gives_is_compared() -> None:
    """What has coroutines, and is exported, needs a twin."""

    def awaits(value: object) -> bool:
        members = vars(value).values() if isinstance(value, type) else ()
        return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in members)

    exported = {name for name in asynchronous.__all__ if awaits(getattr(asynchronous, name))}
    beneath = {"Link", "Transport", "StreamTransport"}  # what a client stands on, rather than what it gives
    plain = {"Guard"}  # a plain context manager in blocking code
    assert exported - beneath - plain <= set(WITHOUT_TWIN)
    assert set(WITHOUT_TWIN) | {"Changes"} == set(blocking.__all__)


def test_a_client_takes_what_the_async_one_takes() -> None:
    theirs, ours = parameters(asynchronous.Client), parameters(blocking.Client)
    assert [each for each in ours if each[0] != "client"] == theirs


# --- it works ---------------------------------------------------------------------------------------------------


def test_services_are_registered_resolved_and_watched(client: blocking.Client) -> None:
    with client.register("orders", port=8080, tags=["a"]) as registration:
        assert registration.registered
        assert registration.lease
        assert [each.port for each in client.resolve("orders")] == [8080]
        assert client.services() == {"orders": ("a",)}
        with client.watch("orders") as changes:
            first = next(changes)
            assert first.snapshot
            assert changes.next(timeout_s=0.01) is None, "nothing happened"
            registration.set_state("draining")
            second = changes.next(timeout_s=30.0)
            assert second is not None
            assert [each.state for each in second.changed] == ["draining"]
    assert client.resolve("orders") == ()
    assert client.connected
    assert client.welcome is not None
    assert client.store_id
    assert client.wait_connected()


def test_keys_values_and_transactions(client: blocking.Client) -> None:
    class Limits(msgspec.Struct):
        per_s: int

    revision = client.kv.put("a", b"1", cas=0)
    found = client.kv.get("a")
    assert found is not None
    assert (found.value, found.mod_revision) == (b"1", revision)
    assert client.kv.cas("a", b"2", 1) is None
    txn = client.kv.txn()
    txn.require("a", revision=revision)
    written = txn.put("b", b"2", with_prev=True)
    assert txn.commit().succeeded
    assert written.prev is None
    assert [each.key for each in client.kv.list()] == [b"a", b"b"]
    assert client.kv.snapshot("b").entries[0].value == b"2"
    limits = client.kv.typed(Limits)
    assert limits.update("limit", lambda old: Limits(old.per_s + 1 if old else 1)).value == Limits(1)
    assert [each.value for each in limits.list("limit")] == [Limits(1)]
    assert limits.delete("limit") == 1
    assert client.kv.delete("", prefix=True) == 2


def test_a_watch_of_keys_is_an_iterator_that_waits(client: blocking.Client) -> None:
    start = client.kv.put("before", b"")
    with client.kv.watch("k", prefix=True, start_revision=start) as changes:
        client.kv.put("k1", b"1")
        client.kv.put("k2", b"2")
        seen = []
        for change in changes:
            assert isinstance(change, KvEvents)
            seen += [event.key for event in change.events]
            if len(seen) == 2:
                break
        assert seen == [b"k1", b"k2"]
    with pytest.raises(StopIteration):
        next(changes)


def test_a_lease_holds_its_keys_and_says_when_it_is_lost(client: blocking.Client, registry: RegistryThread) -> None:
    with client.lease(ttl_s=5.0) as lease:
        assert lease.valid
        client.kv.put("mine", b"", lease=lease)
        assert 0 < lease.remaining_s <= 5.0
        assert time.monotonic() < lease.deadline < time.monotonic() + 6.0
        with lease.guarded():
            pass
    assert client.kv.get("mine") is None
    with pytest.raises(LeaseGone):
        client.kv.put("mine", b"", lease=lease)
    with client.lease(ttl_s=5.0) as lease:
        told = threading.Event()
        lease.on_lost(told.set)
        registry.close()
        client.close()
        assert lease.lost.is_set()
        assert told.is_set()
        with pytest.raises(LeaseGone), lease.guarded():
            pass
        with pytest.raises(Closed):
            lease.start()


def test_a_lock_is_held_by_one_thread_at_a_time(client: blocking.Client) -> None:
    inside: list[int] = []
    most: list[int] = []
    tokens: list[int] = []

    def work() -> None:
        with client.lock("job", ttl_s=30.0) as lock:
            inside.append(lock.token)
            most.append(len(inside))
            tokens.append(lock.token)
            assert lock.held
            assert not lock.lost.is_set()
            with lock.guarded():
                inside.pop()

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work) for _ in range(16)]:
            done.result()
    assert max(most) == 1
    assert tokens == sorted(tokens)


def test_locks_on_a_session_are_lost_together(client: blocking.Client) -> None:
    with client.session(ttl_s=30.0) as session:
        first, second = session.lock("a"), session.lock("b")
        assert first.acquire()
        assert second.acquire(wait=False)
        assert not client.lock("a").acquire(wait=False)
        assert not client.lock("a").acquire(timeout_s=0.05)
        session.close()
        assert not first.held
        assert client.lock("b").acquire(wait=False), "what was held on it was given back with it"
    with client.lock("a", ttl_s=30.0) as lock:
        assert lock.token


def test_what_was_lost_is_told_when_its_block_ends(client: blocking.Client) -> None:
    lock = client.lock("a", ttl_s=3.0)

    def lose() -> None:
        with lock:
            lost = threading.Event()
            lock.on_lost(lost.set)
            lease = lock._inner._lease
            assert lease is not None
            client.call(LeaseRevoke(lease=lease.id))
            assert lost.wait(30.0), "the next renewal finds it gone"
            assert lock.lost.is_set()
            with pytest.raises(LeaseGone), lock.guarded():
                pass

    with pytest.raises(LeaseGone):
        lose()
    with pytest.raises(LeaseGone), lock.guarded():
        pass


def test_elections_barriers_and_queues_wait(client: blocking.Client) -> None:
    election = client.election("leader", value=b"me")
    with election.observe() as leaders:
        assert next(leaders) is None
        assert election.campaign(timeout_s=30.0)
        elected = next(leaders)
        assert elected is not None
        assert (elected.value, elected.token) == (b"me", election.token)
        election.proclaim(b"still me")
        leader = election.leader()
        assert leader is not None
        assert leader.value == b"still me"
        election.resign()
    gate = client.barrier("gate")
    gate.hold()
    assert not gate.wait(timeout_s=0.05)
    gate.release()
    assert gate.wait()
    group = client.double_barrier("group", 2)
    assert not group.enter(timeout_s=0.05)
    with ThreadPoolExecutor(1) as pool:
        other = client.double_barrier("group", 2)
        entering = pool.submit(other.enter)
        assert group.enter(timeout_s=30.0)
        assert entering.result()
        leaving = pool.submit(other.leave)
        assert group.leave(timeout_s=30.0)
        assert leaving.result()
    queue = client.queue("jobs")
    queue.put(b"one")
    with pytest.raises(ValueError, match="bad"), queue.claim() as job:
        raise ValueError(f"bad {job.value!r}")
    with queue.claim() as job:
        assert job.value == b"one"
        assert queue.length() == 1
    assert queue.length() == 0
    permits = client.semaphore("few", 1)
    with permits:
        assert not client.semaphore("few", 1).acquire(wait=False)


def test_a_resolver_answers_where_it_is_called(client: blocking.Client) -> None:
    with client.register("orders", port=1), client.resolver("orders") as resolver:
        assert [each.port for each in resolver.lookup("orders")] == [1]
        with resolver.pick("orders") as instance:
            assert instance.port == 1
        assert resolver.report(instance, ok=True)
        assert resolver.state("orders").live
        with client.register("users", port=2):
            assert resolver.pick("users").instance.port == 2, "a first pick waits"
        assert resolver.services() == ("orders", "users")
        assert resolver.forget("users")
        with pytest.raises(Unavailable, match="no instance"):
            resolver.pick("nobody")


def test_threads_share_a_client(client: blocking.Client) -> None:
    def work(number: int) -> bytes:
        client.kv.put(f"k{number}", str(number).encode())
        found = client.kv.get(f"k{number}")
        assert found is not None
        return found.value

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(64))) == [str(number).encode() for number in range(64)]
    assert [thread.name for thread in threading.enumerate()].count("homeport client") == 1


def test_a_subscription_tells_its_listener_in_the_client_s_thread(client: blocking.Client) -> None:
    subscription = client.subscribe("orders")
    assert subscription.wait_known(30.0)
    told: list[ServiceEvent] = []
    errors: list[Exception] = []
    more = threading.Event()

    def changed(event: ServiceEvent) -> None:
        told.append(event)
        try:
            client.services()
        except WrongLoop as error:
            errors.append(error)
        more.set()

    stop = subscription.listen(changed)
    with client.register("orders", port=1):
        assert more.wait(30.0)
    stop()
    assert errors, "who would wait for himself is told so"
    assert told[0].changed[0].port == 1
    assert subscription.live
    subscription.close()


# --- it ends ----------------------------------------------------------------------------------------------------


def test_what_is_closed_says_so_and_leaves_no_thread(address: str) -> None:
    client = blocking.Client(address)
    assert "homeport client" not in [thread.name for thread in threading.enumerate()], "it starts with its first use"
    changes = client.watch("orders")
    next(changes)
    client.close()
    client.close()
    assert "homeport client" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(Closed):
        client.services()
    with pytest.raises(Closed):
        next(changes)
    changes.close()


def test_a_close_ends_what_other_threads_wait_for(address: str) -> None:
    client = blocking.Client(address)
    changes = client.watch("orders")
    next(changes)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            next(changes)
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while changes._pending is None:
        thread.join(0.001)
    client.close()
    thread.join(30.0)
    assert [type(error) for error in errors] == [Closed]


def test_a_watch_that_nobody_refers_to_ends(client: blocking.Client, registry: RegistryThread) -> None:
    changes = client.watch("orders")
    next(changes)
    assert registry.registry.peers.watches == 1
    del changes
    gc.collect()
    deadline = time.monotonic() + 30.0
    while registry.registry.peers.watches and time.monotonic() < deadline:
        client.services()
    assert registry.registry.peers.watches == 0


def test_a_malformed_address_is_refused_where_it_is_given() -> None:
    with pytest.raises(InvalidArgument, match="host:port"):
        blocking.Client("nonsense")


def test_without_a_registry_calls_end_with_their_time() -> None:
    with blocking.Client("127.0.0.1:1") as client:
        with pytest.raises(Unavailable):
            client.resolve("orders", timeout_s=0.1)
        assert not client.wait_connected(0.05)


def test_a_client_of_a_registry_in_a_thread_needs_no_port(registry: RegistryThread) -> None:
    with blocking.Client(client=registry.client) as client:
        client.kv.put("a", b"1")
        assert client.services() == {}


def run(code: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no warning, no traceback"
    return done.stdout


def test_it_closes_when_the_interpreter_exits_and_saves_what_it_knows(address: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from homeport.client import blocking\n"
        "client = blocking.Client(sys.argv[1])\n"
        "client.register('orders', id='o', port=7, ttl_s=0).start()\n"
        "resolver = client.resolver('orders', state_file=sys.argv[2])\n"
        "print(resolver.pick('orders').instance.port)\n"
    )
    state = tmp_path / "known"
    assert run(code, address, str(state)) == "7\n"
    with blocking.Client("127.0.0.1:1") as client, client.resolver(state_file=state) as resolver:
        assert resolver.lookup("orders")[0].port == 7


def test_a_registration_stands_although_nobody_holds_its_client(address: str) -> None:
    code = (
        "import gc, sys\n"
        "from homeport.client import blocking\n"
        "def register():\n"
        "    registration = blocking.Client(sys.argv[1]).register('orders', port=7)\n"
        "    registration.start()\n"
        "    return registration\n"
        "registration = register()\n"
        "gc.collect()\n"
        "print(registration.set_state('draining') > 0)\n"
    )
    assert run(code, address) == "True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_client_that_was_made_before_a_fork_works_on_both_sides(address: str) -> None:
    code = (
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"  # Python 3.12 and newer: of forks beside threads
        "from homeport.client import Closed, blocking\n"
        "client = blocking.Client(sys.argv[1])\n"
        "resolver = client.resolver('orders')\n"
        "registration = client.register('orders', port=7)\n"
        "registration.start()\n"
        "changes = client.watch('orders')\n"
        "next(changes)\n"
        "assert resolver.pick('orders').instance.port == 7\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    client.kv.put('child', b'1')\n"
        "    assert resolver.pick('orders').instance.port == 7\n"
        "    for broken in (registration.stop, changes.next):\n"
        "        try:\n"
        "            broken()\n"
        "        except Closed as error:\n"
        "            assert 'fork' in str(error)\n"
        "        else:\n"
        "            os._exit(3)\n"
        "    sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert client.kv.get('child').value == b'1'\n"
        "registration.set_state('draining')\n"
        "assert next(changes).changed[0].state == 'draining'\n"
        "registration.stop()\n"
        "print('done')\n"
    )
    assert run(code, address) == "done\n"


def test_an_interrupt_cancels_what_was_waited_for(address: str) -> None:
    code = (
        "import os, signal, threading\n"
        "from homeport.client import blocking\n"
        "client = blocking.Client('127.0.0.1:1')\n"
        "client.start()\n"
        "try:\n"  # from here on: a timer may win against the line that follows it
        "    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    client.resolve('orders', timeout_s=60.0)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    assert run(code) == "interrupted\n"


def test_instances_are_the_same_values_as_in_async_code(client: blocking.Client) -> None:
    with client.register("orders", port=1):
        assert all(type(each) is Instance for each in client.resolve("orders"))
