"""grpc.aio: a channel to a service, whose addresses follow the registry.

    async with GrpcChannel(client, "orders") as channel:
        stub = OrdersStub(channel)

gRPC for Python has no resolvers of one's own. So this is a channel in front of one that is made of the instances'
present addresses, balanced by gRPC's own round robin, and replaced when they change; calls end on the one they began
on.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final, Self

import grpc
import grpc.aio

from homeport.client.client import Client
from homeport.client.core.errors import Closed, Unavailable
from homeport.client.core.limits import CALL_S
from homeport.client.core.model import Instance, ServiceEvent
from homeport.client.subscription import Subscription

_log = logging.getLogger("homeport.client")

GRACE_S: Final = 30.0  # for calls on a channel that was replaced; longer streams are cut, and begun anew by callers


class GrpcChannel:
    """A channel to whoever serves `service`; give it to stubs as any other.

    Args:
        client: a started client, of the same loop.
        credentials: for TLS; None: plain.
        options: gRPC's channel options; the balancing policy is set here.
    """

    def __init__(
        self,
        client: Client,
        service: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self._client = client
        self._service = service
        self._credentials = credentials
        self._options = [("grpc.lb_policy_name", "round_robin"), *options]
        self._target = ""
        self._channel: grpc.aio.Channel | None = None
        self._subscription: Subscription | None = None
        self._replaced: dict[asyncio.Future[None], grpc.aio.Channel] = {}  # until what was under way on them has ended

    async def start(self, timeout_s: float = CALL_S) -> None:
        """Follow the service.

        Raises:
            Unavailable: nothing is known of it within `timeout_s`.
            Closed: it was started before.
        """
        if self._subscription is not None:
            raise Closed("this channel was started already")
        subscription = self._client.subscribe(self._service)
        try:
            if not await subscription.wait_known(timeout_s):
                raise Unavailable(f"nothing is known of service {self._service!r} after {timeout_s} s")
        except BaseException:
            subscription.close()
            raise
        self._subscription = subscription
        subscription.listen(self._changed)
        self._changed()

    def _changed(self, _event: ServiceEvent | None = None) -> None:
        assert self._subscription is not None
        found = [each for each in self._subscription.instances.values() if each.available]
        target = _target(found)
        if target == self._target:
            return
        self._target = target
        old, self._channel = self._channel, self._connect(target) if target else None
        if old is not None:
            closing = asyncio.ensure_future(old.close(GRACE_S))
            self._replaced[closing] = old
            closing.add_done_callback(self._replaced.pop)

    def _connect(self, target: str) -> grpc.aio.Channel:
        if self._credentials is not None:
            return grpc.aio.secure_channel(target, self._credentials, options=self._options)
        return grpc.aio.insecure_channel(target, options=self._options)

    def present(self) -> grpc.aio.Channel:
        """The channel that a call takes now.

        Raises:
            Unavailable: no instance is well.
            Closed: not started, or closed.
        """
        if self._subscription is None:
            raise Closed("this channel was not started, or is closed; use async with")
        if self._channel is None:
            raise Unavailable(f"nobody serves {self._service!r}: no instance is well")
        return self._channel

    def unary_unary(self, method: str, *args: Any, **options: Any) -> _Calls:
        return _Calls(self, "unary_unary", method, args, options)

    def unary_stream(self, method: str, *args: Any, **options: Any) -> _Calls:
        return _Calls(self, "unary_stream", method, args, options)

    def stream_unary(self, method: str, *args: Any, **options: Any) -> _Calls:
        return _Calls(self, "stream_unary", method, args, options)

    def stream_stream(self, method: str, *args: Any, **options: Any) -> _Calls:
        return _Calls(self, "stream_stream", method, args, options)

    async def close(self, grace: float | None = None) -> None:
        """Close, giving calls under way `grace` seconds. Idempotent."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()
        channel, self._channel = self._channel, None
        replaced = dict(self._replaced)
        for closing in replaced:
            closing.cancel()
        await asyncio.gather(*replaced, return_exceptions=True)
        channels = [*replaced.values()] if channel is None else [*replaced.values(), channel]
        await asyncio.gather(*(each.close(grace) for each in channels))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()


class _Calls:
    """A method of a stub: made once, and called on whatever channel is the present one."""

    def __init__(
        self, channel: GrpcChannel, kind: str, method: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._channel = channel
        self._kind = kind
        self._method = method
        self._args = args
        self._options = options
        self._made: tuple[grpc.aio.Channel, Any] | None = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        channel = self._channel.present()
        if self._made is None or self._made[0] is not channel:
            self._made = (channel, getattr(channel, self._kind)(self._method, *self._args, **self._options))
        return self._made[1](*args, **options)


def _target(instances: Iterable[Instance]) -> str:
    """gRPC's static target for these instances, of one IP family as it demands; empty if there is none.

    An instance that registered a name instead of an IP address is left out, and said so.
    """
    families: dict[int, list[str]] = {4: [], 6: []}
    for instance in instances:
        try:
            ip = ipaddress.ip_address(instance.address)
        except ValueError:
            _log.warning("gRPC needs IP addresses, and %s registered %r", instance.id, instance.address)
            continue
        families[ip.version].append(f"[{ip}]:{instance.port}" if ip.version == 6 else f"{ip}:{instance.port}")
    version = 4 if families[4] else 6
    return f"ipv{version}:{','.join(sorted(families[version]))}" if families[version] else ""
