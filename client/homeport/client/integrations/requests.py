"""requests: an adapter that sends `http://orders/…` to an instance of `orders`.

with blocking.Client("127.0.0.1:8300") as client, requests.Session() as session:
    session.mount("http://", HomeportAdapter(client))
    session.get("http://orders/1")
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from homeport.client import blocking
from homeport.client.core.model import Instance
from homeport.client.integrations.sending import blocking_resolver_of, send_blocking, service_of

__all__ = ["HomeportAdapter"]

_BROKEN = (requests.ConnectionError, requests.Timeout)


class HomeportAdapter(HTTPAdapter):
    """For `Session.mount`; hosts that name no service are requested as they are.

    Args:
        client: a blocking client, or a resolver of it; several adapters may share it.
        options: `HTTPAdapter`'s.
    """

    def __init__(self, client: blocking.Client | blocking.Resolver, **options: Any) -> None:
        self._resolver = blocking_resolver_of(client)
        self._own = isinstance(client, blocking.Client)
        super().__init__(**options)

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        asked = request.url
        parts = urlsplit(asked or "")
        service = service_of(parts.hostname)
        if service is None:
            return super().send(request, *args, **options)

        def attempt(instance: Instance) -> requests.Response:
            address, port = instance.address, instance.port
            sent = request.copy()
            netloc = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            sent.url = urlunsplit(parts._replace(netloc=netloc))
            sent.headers.setdefault("Host", parts.netloc.rpartition("@")[2])
            response = super(HomeportAdapter, self).send(sent, *args, **options)
            response.url, response.request = str(asked), request  # redirects and cookies are of the service, not of one
            return response

        response: requests.Response = send_blocking(self._resolver, service, attempt, _status, _unreached, _BROKEN)
        return response

    def close(self) -> None:
        if self._own:
            self._resolver.close()
        super().close()


def _status(response: requests.Response) -> int:
    return response.status_code


def _unreached(error: Exception) -> bool:
    if not isinstance(error, requests.ConnectionError):
        return False
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, NewConnectionError | ConnectTimeoutError)
