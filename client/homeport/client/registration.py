"""A registration: one instance, kept registered until it is stopped, whatever happens to the registry meanwhile.

Which lease is the present one is only known between two `Register` calls. So they are made one at a time, each in a
task of its own that outlives whoever asked for it, and whoever is about to act on the lease waits for the one under
way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from homeport.client.core import wire
from homeport.client.core.backoff import Backoff, Rng
from homeport.client.core.errors import (
    Closed,
    ConnectionLost,
    HomeportError,
    InvalidArgument,
    LeaseGone,
    OutcomeUnknown,
    ReadOnly,
    RequestError,
    Unavailable,
)
from homeport.client.core.limits import CALL_S, WAIT_APPLIED_S_MAX
from homeport.client.core.messages import (
    Deregister,
    Done,
    Register,
    Registered,
    ReportCheck,
    Resolve,
    SetState,
    WaitApplied,
)
from homeport.client.core.model import Instance, State, Status, validate_instance
from homeport.client.pulse import Pulse

if TYPE_CHECKING:
    from homeport.client.client import Client

_log = logging.getLogger("homeport.client")

RENEWALS_PER_TTL: Final = 3  # two may be lost before the third comes too late
RENEWAL_JITTER: Final = 0.1  # of the period, either way, so that many instances do not renew in step
_DRAIN_CALL_S: Final = 1.0  # for the registry to take note, where `min_s` is shorter
_STOP_S: Final = 2.0  # for a registration under way to end, and to deregister in; past that the lease does it
_UNLEASED_S: Final = 30.0  # stands in for a TTL where there is none: how often to look for anything to repair


class Registration:
    """One registered instance; `async with`, or `start` and `stop`.

    It renews at a third of the TTL, and at once over a new link; it registers again by itself when the registry has
    forgotten the lease or is another one. Between `start` and `stop` it never gives up; `registered` and `error` say
    how it stands. What it never does is fight: if its lease is gone because someone else registered the same node and
    id, it says so (`error` is a `LeaseGone`) and waits for the id to become free.
    """

    def __init__(self, client: Client, instance: Instance, rng: Rng, bound_to: asyncio.Task[Any] | None = None) -> None:
        wire.checked(Register(instance=instance))
        validate_instance(msgspec.structs.replace(instance, node=instance.node or "registry"))
        self.instance: Instance = instance
        self.lease: int = 0
        self.registered: bool = False
        self.error: HomeportError | None = None  # what the last renewal or registration met; None while all is well
        self._client = client
        self._rng = rng
        self._backoff = Backoff(rng)
        self._bound_to = bound_to
        self._pulse: Pulse | None = None  # of the loop of that task, where that is not the client's own
        self._open = False  # between start and stop
        self._displaced = False  # someone else has the id
        self._doubtful = False  # a registration may have happened whose lease never arrived here
        self._link_epoch = -1  # the link that it was last registered or renewed over
        self._store_id = ""  # whose lease that is
        self._said: State | None = None  # the state that the registry was last told; None: that is not known
        self._unreported = False  # what a check was last said to be may not have arrived
        self._turn = asyncio.Lock()  # held while a registration is under way
        self._registering: asyncio.Task[Registered] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register, and stay registered. Cancelling it takes back what was registered, which may take a moment.

        Raises:
            RequestError: the registry refuses the registration; the message says why.
            Unavailable: no registry within the client's timeout; nothing is kept up then.
            Closed: it was started already, or was stopped meanwhile, or the task it is bound to has ended.
        """
        if self._open:
            raise Closed("this registration was started already")
        if self._bound_to is not None and self._bound_to.done():
            raise Closed("the task that this registration is bound to has ended")
        self._bind()
        self._open = True
        self.lease, self._link_epoch = 0, -1  # of an earlier life: this is a new registration, whoever has the id
        self._displaced = self._doubtful = False
        try:
            await self._register()
        except BaseException as error:
            self._open = False
            if isinstance(error, asyncio.CancelledError) or self._stays(error):
                await self._withdraw()
            raise
        self._expect_open()  # stopped meanwhile, it is deregistered already
        self._task = asyncio.create_task(self._keep(), name=f"registration of {self.instance.id}")

    def _bind(self) -> None:
        """Stop when the task that this is bound to ends, and renew only while its loop turns."""
        task = self._bound_to
        if task is None:
            return
        here = asyncio.get_running_loop()
        if task.get_loop() is here:
            task.add_done_callback(self._bound_ended)
            return
        self._pulse = Pulse(task.get_loop())

        def ended(_task: asyncio.Task[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the client's loop is closed, and the registration with it
                here.call_soon_threadsafe(self._bound_ended, _task)

        try:
            task.get_loop().call_soon_threadsafe(task.add_done_callback, ended)
        except RuntimeError:
            raise Closed("the loop of the task that this registration is bound to is closed") from None

    def _bound_ended(self, _task: asyncio.Task[Any]) -> None:
        if self._open:
            self._client.farewells.say(self.stop(), f"deregister {self.instance.id}, whose task has ended")

    async def stop(self) -> None:
        """Deregister and stop renewing; if the registry cannot be reached, the lease ends by itself. Idempotent."""
        if not self._open:
            return
        self._open = False
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._withdraw()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    async def set_state(self, state: State, *, timeout_s: float = CALL_S) -> int:
        """Tell everyone that this instance is `up`, `draining` or in `maintenance`.

        Returns:
            The revision at which its service said so; acting on that one is acting on the state.

        Raises:
            Unavailable: no registry within `timeout_s`; whichever comes back is told then.
            LeaseGone: another registration has taken its place.
            Closed: it was not started, or was stopped.
        """
        self._expect_open()
        self.instance = msgspec.structs.replace(self.instance, state=state)  # what later registrations say
        try:
            async with asyncio.timeout(timeout_s):
                await self._settled()
                done = await self._say_state(timeout_s)
                if done.applied:
                    return done.revision
                # It said so already, or the lease is gone: registering again says it, or changes nothing.
                await self._register()
                asked = Resolve(service=self.instance.service, passing=False)
                return (await self._client.call(asked, timeout_s=timeout_s)).revision
        except TimeoutError:
            raise ConnectionLost(f"set_state: no answer within {timeout_s} s") from None

    async def drain(self, *, ack_timeout_s: float = 5.0, min_s: float = 2.0) -> None:
        """Take this instance out of rotation, and return when no follower sends to it any more.

        Returns when every live follower has acted on it, or after `ack_timeout_s`, and never before `min_s`, which is
        for those who poll. It stays registered, so keep serving. Without a registry it returns after `min_s`, a second
        at least.

        Raises:
            InvalidArgument: `ack_timeout_s` is over 30, or one of the two is no time to wait.
            Closed: it was not started, or was stopped.
        """
        if not 0 <= ack_timeout_s <= WAIT_APPLIED_S_MAX:
            raise InvalidArgument(
                f"ack_timeout_s is {ack_timeout_s}; allowed: 0 to {WAIT_APPLIED_S_MAX:.0f}", field="ack_timeout_s"
            )
        if not 0 <= min_s < float("inf"):
            raise InvalidArgument(f"min_s is {min_s}; allowed: 0 or more", field="min_s")
        self._expect_open()
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            revision = await self.set_state("draining", timeout_s=max(min_s, _DRAIN_CALL_S))
            wait = WaitApplied(service=self.instance.service, revision=revision, timeout_s=ack_timeout_s)
            await self._client.call(wait, timeout_s=ack_timeout_s + 1.0)
        except HomeportError as error:
            _log.warning("%s drains without acknowledgement: %s", self.instance.id, error)
        await asyncio.sleep(max(0.0, started + min_s - loop.time()))

    async def report(self, check: str, status: Status, output: str = "") -> None:
        """Report the status of a `ttl` check, which also starts its TTL anew.

        Later registrations, after the registry's restart say, begin with it: a critical instance stays critical.
        """
        checks = tuple(
            msgspec.structs.replace(each, initial=status) if each.name == check else each
            for each in self.instance.checks
        )
        one = self.instance = msgspec.structs.replace(self.instance, checks=checks)
        request = ReportCheck(id=self.instance.id, node=self.instance.node, check=check, status=status, output=output)
        self._unreported = True
        await self._client.call(request)
        self._unreported = self.instance is not one  # else another report is under way, or failed

    async def _say_state(self, timeout_s: float) -> Done:
        one = self.instance
        said = SetState(id=one.id, node=one.node, state=one.state, lease=self.lease)
        self._said = None
        done = await self._client.call(said, timeout_s=timeout_s)
        self._said = one.state
        return done

    def _expect_open(self) -> None:
        if not self._open:
            raise Closed("this registration was not started, or was stopped")

    # --- registering, one at a time -----------------------------------------------------------------------------

    async def _register(self) -> None:
        """Register, over anyone who has the id, unless that is known to be someone who came later."""
        async with self._turn:
            self._expect_open()
            stands_since = self._client.link_epoch == self._link_epoch
            free = self._displaced or (stands_since and self.lease != 0 and not self._doubtful)
            self._registering = asyncio.create_task(self._ask(free), name=f"registering {self.instance.id}")
            self._registering.add_done_callback(_heard)
            await asyncio.shield(self._registering)

    async def _ask(self, expect_free: bool) -> Registered:
        epoch = self._client.link_epoch + (not self._client.connected)  # of the link that it goes over
        request = Register(instance=self.instance, lease=self.lease, expect_free=expect_free)
        try:
            done = await self._client.call(request)
        except LeaseGone:
            self._displaced = True
            self.registered = False
            raise
        except (ConnectionLost, OutcomeUnknown):
            self._doubtful = True
            raise
        first = self._link_epoch < 0
        self._link_epoch, self._store_id = epoch, self._client.store_id
        if first or (done.lease != self.lease and self._said is not None):
            self._said = request.instance.state  # else what stood may go on, in the state that it had
        self._unreported = self._unreported and request.instance is not self.instance
        self.lease = done.lease
        self.registered = True
        self.error = None
        self._displaced = self._doubtful = False
        return done

    async def _settled(self) -> None:
        """Return when no registration is under way, so that the lease is the one in force."""
        async with self._turn:
            pass

    def _stays(self, error: BaseException) -> bool:
        """Whether a failed registration may have happened, with no lease to end it."""
        return not self.instance.ttl_s and isinstance(error, ConnectionLost | OutcomeUnknown)

    async def _withdraw(self) -> None:
        """Let a registration under way end, so that its lease is known, and deregister."""
        task, self._registering = self._registering, None
        if task is not None and not task.done():
            if self._client.connected:
                await asyncio.wait((task,), timeout=_STOP_S)
            task.cancel()  # it still waits for a link, or for an answer that takes too long
        self.registered = False
        if self.instance.ttl_s and not self.lease:
            return  # nothing is known to stand, and without its lease it might be someone else's
        try:
            goodbye = Deregister(id=self.instance.id, node=self.instance.node, lease=self.lease)
            await self._client.call(goodbye, timeout_s=_STOP_S)
        except HomeportError as error:
            _log.info("%s was not deregistered, its lease will end: %s", self.instance.id, error)

    # --- staying registered -------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Renew, at once over another link, and register again when the lease is gone or nobody knows which it is."""
        tried = self._link_epoch  # a link over which it failed is left alone until the next delay is over
        delay_s = self._delay_s()
        while True:
            try:
                await self._client.wait_relinked(tried, delay_s)
                if not self._client.connected:
                    await self._linked()
                tried = self._client.link_epoch
                if self._pulse is not None and not self._pulse.beats():
                    raise Unavailable("the loop of the task it is bound to does not turn")
                if not await self._renewed(tried) or self._displaced:  # as another call found out meanwhile
                    self.registered = False
                    async with self._client.registering_again:
                        await self._register()
                    _log.info("%s is registered again", self.instance.id)
                self.registered = True
                self.error = None
                self._backoff.reset()
                delay_s = self._delay_s()
            except Closed as error:  # the client's end is its end
                self.registered = False
                self.error = error
                return
            except LeaseGone as error:
                if self.error is None or not isinstance(self.error, LeaseGone):
                    _log.error("%s is not registered any more, and waits for its id: %s", self.instance.id, error)
                self.error = error
                delay_s = self._period_s()
            except HomeportError as error:
                if isinstance(error, ReadOnly):
                    self._client.go_elsewhere(tried, error)
                self._met(error)
                delay_s = min(self._backoff.next_s(), self._period_s())

    async def _linked(self) -> None:
        """Return when there is a link, however long that takes: very many that tried meanwhile would be the trouble."""
        try:
            await self._client.wait_link(CALL_S)
        except Unavailable as error:
            self._met(error)
            await self._client.wait_link()

    def _met(self, error: HomeportError) -> None:
        level = logging.ERROR if isinstance(error, RequestError) else logging.WARNING
        if type(error) is type(self.error):
            level = logging.DEBUG  # said already: it goes on
        self.error = error
        _log.log(level, "%s could not be kept registered: %s", self.instance.id, error)

    def _period_s(self) -> float:
        period_s = (self.instance.ttl_s or _UNLEASED_S) / RENEWALS_PER_TTL
        return period_s * self._rng.uniform(1 - RENEWAL_JITTER, 1 + RENEWAL_JITTER)

    def _delay_s(self) -> float:
        """Until the next renewal; a little early, if that lets it go with others of this client."""
        if not self.lease:
            return self._period_s()
        now = asyncio.get_running_loop().time()
        return self._client.renewals.delay_s(now, self.instance.ttl_s / RENEWALS_PER_TTL, self._period_s())

    async def _renewed(self, epoch: int) -> bool:
        """Whether the registration stands, as can be heard over link number `epoch`."""
        moved = epoch != self._link_epoch
        if self._displaced or (moved and not self._stands()):
            return False
        if self.lease and not await self._client.renewals.renew(self.lease, self.instance.ttl_s, moved=moved):
            return False
        self._link_epoch = epoch
        if self._said != self.instance.state:
            await self._say_state(CALL_S)
        return True

    def _stands(self) -> bool:
        """Whether the registration, if its lease does, says what it is to say."""
        if not self.lease or self._doubtful or self._unreported:
            return False
        return self._store_id == self._client.store_id


def _heard(registering: asyncio.Task[Registered]) -> None:
    """Whoever asked may have gone; the failure was logged, or was theirs to hear."""
    if not registering.cancelled():
        registering.exception()
