"""What goes wrong while the users are there, and in which order; everything that breaks is mended again.

The script waits for what it caused (an instance back in the registry, a drain finished) and never for the clock alone;
between two acts it leaves the site a pause, so that the whole takes about the seconds it was given.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from homeport.mesh.demo.ledger import Ledger
from homeport.mesh.demo.site import SERVICES, Member, Site

PAGE_SIZE_LATER = 12  # the setting is changed while the registry is restarted, and feeds must go by it
_PAUSES = 6  # how many there are in `play`
_PAUSES_SHARE = 0.5  # of the time; mending takes the other half


@dataclass(slots=True)
class Script:
    """Plays once; the counters say what was done so far."""

    site: Site
    ledger: Ledger
    rng: random.Random
    tell: Callable[[str], None]
    seconds: float
    instances_killed: int = field(default=0, init=False)
    registry_restarts: int = field(default=0, init=False)
    rolled: int = field(default=0, init=False)

    async def play(self) -> None:
        """Break and mend.

        Raises:
            SiteError: something could not be mended in time.
        """
        first, second, third, rolled = self.rng.sample(list(SERVICES), 4)
        await self._pause()
        lost = await self._kill(first)
        await self._pause()
        await self._replace(lost)
        lost = await self._kill(second, app_only=True)
        await self._pause()
        await self._replace(lost)
        await self._restart_registry(meanwhile=third)
        await self._pause()
        self.tell(f"rolling {rolled} to v2: new instances first, then the old ones drain")
        await self.site.roll(rolled, "v2")
        self.rolled += 1
        self.tell(f"{rolled} is v2 everywhere")
        await self._pause()
        await self._replace(await self._kill(rolled))
        await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self.seconds * _PAUSES_SHARE / _PAUSES)

    async def _kill(self, service: str, *, app_only: bool = False) -> Member:
        victim = self.rng.choice([member for member in self.site.members.values() if member.service == service])
        if app_only:
            self.tell(f"SIGKILL to the app of {victim.id}; its sidecar lives")
            await self.site.kill_app(victim)
        else:
            self.tell(f"SIGKILL to {victim.id}, app and sidecar")
            await self.site.kill(victim)
        self.instances_killed += 1
        return victim

    async def _replace(self, lost: Member) -> None:
        member = await self.site.add(lost.service, lost.version)
        await self.site.wait_available([member])
        self.tell(f"{member.id} took the place of {lost.id}")

    async def _restart_registry(self, meanwhile: str) -> None:
        self.tell("SIGKILL to the registry; the sidecars go on with what they know")
        await self.site.kill_registry()
        await self._pause()
        lost = await self._kill(meanwhile)  # nobody is there to tell the sidecars: they find out themselves
        self.site.settings = msgspec.structs.replace(self.site.settings, page_size=PAGE_SIZE_LATER)
        self.ledger.page_sizes.add(PAGE_SIZE_LATER)
        back_s = await self.site.restart_registry()
        self.registry_restarts += 1
        self.tell(f"a new, empty registry: everyone registered again within {back_s:.1f} s")
        await self._replace(lost)
