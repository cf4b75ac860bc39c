"""ASGI: a lifespan that registers the app, for FastAPI, Starlette, Litestar and whatever takes one like theirs.

    app = FastAPI(lifespan=registered("orders", port=8080))

While the app lives it is registered, and `app.state.homeport` is a client. Servers begin the shutdown part when they
have stopped accepting, so who wants no failed request during a stop runs the app behind `homeport run`, which drains.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from homeport.client.client import Client

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


def registered(
    service: str, *, registry: str = "", client: Callable[[], Client] | None = None, **instance: Any
) -> Lifespan:
    """A lifespan that keeps an instance of `service` registered.

    Args:
        registry: where registries are, with commas between; default: `HOMEPORT_REGISTRY`, else 127.0.0.1:8300.
        client: instead, what makes the client.
        instance: what `Client.register` takes: port, address, tags, checks and so on.

    Raises, when the app starts:
        Unavailable: no registry answers; RequestError: it refuses the registration.
    """

    def connect() -> Client:
        import os

        addresses = registry or os.environ.get("HOMEPORT_REGISTRY", "")
        return Client(*(address for address in addresses.split(",") if address))

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with (client or connect)() as homeport, homeport.register(service, **instance):
            app.state.homeport = homeport
            yield

    return lifespan
