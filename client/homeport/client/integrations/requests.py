"""requests: an adapter that sends `http://orders/…` to an instance of `orders`.

    with EndpointsThread("127.0.0.1:8300") as endpoints, requests.Session() as session:
        session.mount("http://", HomeportAdapter(endpoints))
        session.get("http://orders/1")

Hosts that name no service go where they would without.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from homeport.client.integrations.endpoints import Endpoint, EndpointsThread, service_of

__all__ = ["EndpointsThread", "HomeportAdapter"]


class HomeportAdapter(HTTPAdapter):
    """For `Session.mount`; hosts that name no service are requested as they are.

    Args:
        endpoints: started; several adapters may share them, which are closed by whoever made them.
        options: `HTTPAdapter`'s.
    """

    def __init__(self, endpoints: EndpointsThread, **options: Any) -> None:
        self._endpoints = endpoints
        super().__init__(**options)

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        asked = request.url
        parts = urlsplit(asked or "")
        service = service_of(parts.hostname)
        if service is None:
            return super().send(request, *args, **options)

        def attempt(endpoint: Endpoint) -> requests.Response:
            address, port = endpoint.instance.address, endpoint.instance.port
            sent = request.copy()
            netloc = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            sent.url = urlunsplit(parts._replace(netloc=netloc))
            sent.headers.setdefault("Host", parts.netloc.rpartition("@")[2])
            response = super(HomeportAdapter, self).send(sent, *args, **options)
            response.url, response.request = str(asked), request  # redirects and cookies are of the service, not of one
            return response

        response: requests.Response = self._endpoints.send(service, attempt, _unreached)
        return response


def _unreached(error: Exception) -> bool:
    if not isinstance(error, requests.ConnectionError):
        return False
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, NewConnectionError | ConnectTimeoutError)
