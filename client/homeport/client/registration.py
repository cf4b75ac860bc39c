"""A registration: one instance, kept registered until it is stopped, whatever happens to the registry meanwhile."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Self

import msgspec

from homeport.client.core.backoff import Backoff, Rng
from homeport.client.core.errors import Closed, HomeportError, RequestError
from homeport.client.core.limits import CALL_S
from homeport.client.core.messages import Deregister, Register, Registered, Renew, ReportCheck, SetState, WaitApplied
from homeport.client.core.model import Instance, State, Status, validate_instance

if TYPE_CHECKING:
    from homeport.client.client import Client

_log = logging.getLogger("homeport.client")

RENEWALS_PER_TTL: Final = 3  # two may be lost before the third comes too late
RENEWAL_JITTER: Final = 0.1  # of the period, either way, so that many instances do not renew in step
_DRAIN_CALL_S: Final = 1.0  # for the registry to take note, where `min_s` is shorter
_STOP_S: Final = 2.0  # to deregister in; past that the lease does it


class Registration:
    """One registered instance; `async with`, or `start` and `stop`.

    It renews at a third of the TTL, and registers again by itself when the registry was restarted, has forgotten the
    lease or is another one. Between `start` and `stop` it never gives up; `registered` says how it stands.
    """

    def __init__(self, client: Client, instance: Instance, rng: Rng) -> None:
        validate_instance(msgspec.structs.replace(instance, node=instance.node or "registry"))
        self.instance = instance
        self.lease = 0
        self.registered = False
        self._client = client
        self._rng = rng
        self._backoff = Backoff(rng)
        self._link_epoch = -1  # the link that it was last registered over
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register, and stay registered.

        Raises:
            RequestError: the registry refuses the registration; the message says why.
            Unavailable: no registry within the client's timeout; nothing is kept up then.
        """
        if self._task is not None:
            raise Closed("this registration was started already")
        await self._register()
        self._task = asyncio.create_task(self._keep(), name=f"registration of {self.instance.id}")

    async def stop(self) -> None:
        """Deregister and stop renewing; if the registry cannot be reached, the lease ends by itself. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.registered = False
        try:
            goodbye = Deregister(id=self.instance.id, node=self.instance.node, lease=self.lease)
            await self._client.call(goodbye, timeout_s=_STOP_S)
        except HomeportError as error:
            _log.info("%s was not deregistered, its lease will end: %s", self.instance.id, error)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    async def set_state(self, state: State, *, timeout_s: float = CALL_S) -> int:
        """Tell everyone that this instance is `up`, `draining` or in `maintenance`; return that revision.

        Raises:
            Unavailable: no registry within `timeout_s`; whichever comes back is told with the next registration.
        """
        self.instance = msgspec.structs.replace(self.instance, state=state)  # what later registrations say
        request = SetState(id=self.instance.id, node=self.instance.node, state=state, lease=self.lease)
        return (await self._client.call(request, timeout_s=timeout_s)).revision

    async def drain(self, *, ack_timeout_s: float = 5.0, min_s: float = 2.0) -> None:
        """Take this instance out of rotation, and return when no follower sends to it any more.

        Returns when every live follower has acted on it, or after `ack_timeout_s`, and never before `min_s`, which is
        for those who poll. It stays registered, so keep serving. Without a registry it returns after `min_s`, a second
        at least.
        """
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
        """Report the status of a `ttl` check, which also starts its TTL anew."""
        request = ReportCheck(id=self.instance.id, node=self.instance.node, check=check, status=status, output=output)
        await self._client.call(request)

    async def _register(self) -> Registered:
        epoch = self._client.link_epoch
        done = await self._client.call(Register(instance=self.instance, lease=self.lease))
        self._link_epoch = epoch
        self.lease = done.lease
        self.registered = True
        self._backoff.reset()
        return done

    async def _keep(self) -> None:
        """Renew while the link stands, register again when it is another one or the lease is gone."""
        while True:
            period_s = (self.instance.ttl_s or 30.0) / RENEWALS_PER_TTL
            jitter_s = period_s * RENEWAL_JITTER
            relinked = await self._client.wait_relinked(
                self._link_epoch, self._rng.uniform(period_s - jitter_s, period_s + jitter_s)
            )
            try:
                if relinked or not await self._renew():
                    self.registered = False
                    await self._register()
                    _log.info("%s is registered again", self.instance.id)
            except RequestError as error:
                _log.error("%s cannot be registered: %s", self.instance.id, error)
                await asyncio.sleep(self._backoff.next_s())
            except HomeportError as error:
                _log.warning("%s could not renew: %s", self.instance.id, error)
                await asyncio.sleep(self._backoff.next_s())

    async def _renew(self) -> bool:
        if not self.lease:
            return True
        renewed = await self._client.call(Renew(leases=(self.lease,)))
        return renewed.ttls_s[0] > 0
