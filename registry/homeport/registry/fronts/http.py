"""The HTTP front: connections, limits and the life of a request; what is answered stands in `fronts/consul`.

A request is routed by the table, decoded by its row, and answered by the row's view. A read with an index waits here,
without polling, until its resource wakes it, its time is over, the front closes, or its client hangs up, which frees
it at once.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec
from aiohttp import web

from homeport.client.core.backoff import Rng
from homeport.client.core.errors import HomeportError
from homeport.client.core.model import ServiceEvent
from homeport.client.randomness import own_rng
from homeport.registry.core.limits import BLOCKING_WAIT_S_MAX, CONNECTIONS_MAX, LISTEN_BACKLOG
from homeport.registry.core.txn import Change
from homeport.registry.fronts import access_log
from homeport.registry.fronts.consul import bodies
from homeport.registry.fronts.consul.access import authorize, caller_of, refuse_pages
from homeport.registry.fronts.consul.agent import Agent
from homeport.registry.fronts.consul.answers import (
    JSON,
    TEXT,
    Answer,
    Refusal,
    content_hash,
    crowded,
    refused,
    with_content_hash,
)
from homeport.registry.fronts.consul.calls import (
    STREAM,
    Call,
    Endpoint,
    Query,
    decode_body,
    decode_parameters,
    decode_query,
    decode_variable,
)
from homeport.registry.fronts.consul.routes import Match, Routes
from homeport.registry.fronts.consul.table import TABLE
from homeport.registry.fronts.consul.waiting import UNSURE_WAIT_S, Resource
from homeport.registry.fronts.http_bodies import BODIES_BYTES_MAX, Bodies, pieces, stream
from homeport.registry.fronts.http_server import FIRST_HEAD_S_MAX, STALLED_S_MAX, HttpServer
from homeport.registry.fronts.http_whole import Whole
from homeport.registry.fronts.metrics import FrontNumbers
from homeport.registry.operations import Operations

log = logging.getLogger("homeport.registry.http")
log.addHandler(logging.NullHandler())

BLOCKED_QUERIES_MAX: Final = 16_384  # leaves room for other requests among CONNECTIONS_MAX connections; some 10 KB each
WAIT_S_DEFAULT: Final = 300.0  # Consul's
WAIT_JITTER: Final = 1 / 16  # of the wait, on top: a crowd that came together does not come back together
_CLOSE_S: Final = 5.0  # for answers under way when the front closes
_WAITING: Final = frozenset({"index", "hash", "consistent"})  # parameters for which a read may have to wait
_NO_ROUTE: Final = "none"  # the endpoint that unknown paths are counted under

# What Consul says of every read, by the consistency asked for; this registry is its own leader, and its reads are of
# the newest state.
_READ_HEADERS: Final = {
    consistency: {
        "X-Consul-KnownLeader": "true",
        "X-Consul-LastContact": "0",
        "X-Consul-Effective-Consistency": consistency,
    }
    for consistency in ("leader", "stale", "consistent")
}


class HttpFront:
    """Serves the HTTP API on any number of listeners.

    Args:
        operations: what the requests are carried out by.
        rng: where the jitter of blocking queries is drawn from; default: seeded by the system.
        connections_max: connections beyond this are answered 429 and closed.
        blocked_max: blocking queries beyond this are answered 429.
        bodies_bytes_max: bodies that are being read may have so many bytes together; beyond, they are answered 429.
        first_head_s_max: a connection that has not asked for anything by then is cut off.
        stalled_s_max: so is one that takes next to nothing of its answer for so long.
        access_log: whether to write a line for each request, on the logger `homeport.registry.http.access`.

    `numbers` counts what happens, for the metrics.
    """

    def __init__(
        self,
        operations: Operations,
        *,
        rng: Rng | None = None,
        connections_max: int = CONNECTIONS_MAX,
        blocked_max: int = BLOCKED_QUERIES_MAX,
        bodies_bytes_max: int = BODIES_BYTES_MAX,
        first_head_s_max: float = FIRST_HEAD_S_MAX,
        stalled_s_max: float = STALLED_S_MAX,
        access_log: bool = False,
    ) -> None:
        self._operations = operations
        self._rng = rng or own_rng()
        self._connections_max = connections_max
        self._blocked_max = blocked_max
        self._first_head_s_max = first_head_s_max
        self._stalled_s_max = stalled_s_max
        self._access_log = access_log
        self._routes = Routes(TABLE)
        self._ready = next(row for row in TABLE if row.path == "/readyz")  # not so while the front closes
        self.numbers = FrontNumbers()
        self._bodies = Bodies(bodies_bytes_max, self.numbers)
        self._server: HttpServer | None = None
        self._listeners: list[asyncio.Server] = []
        self._agent: Agent | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._blocked: dict[asyncio.Future[bool], None] = {}  # True: something changed; False: answer as it is
        self._under_way = 0
        self._quiet = asyncio.Event()  # set when the front is closing and nothing is under way
        self._closing = False

    async def listen(self, address: str) -> str:
        """Listen on "host:port" (port 0: a free one) and return the actual address.

        Raises:
            OSError: the address cannot be bound.
        """
        host, _, port = address.rpartition(":")
        bare = host.strip("[]")
        loop = asyncio.get_running_loop()
        if self._server is None or self._agent is None:
            self._loop = loop
            self._server = HttpServer(
                self._handle,
                self._connections_max,
                self.numbers,
                first_head_s_max=self._first_head_s_max,
                stalled_s_max=self._stalled_s_max,
            )
            self._agent = Agent(self._operations, _advertised(bare), loop.time(), self.numbers, self._rng)
            self._operations.store.listen(self._revision)
        listener = await loop.create_server(self._server.accept, bare or None, int(port), backlog=LISTEN_BACKLOG)
        self._listeners.append(listener)
        return f"{host}:{listener.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Become not ready, answer what is blocked, finish what is under way, then close. Idempotent."""
        self._closing = True
        for woken in self._blocked:
            _wake(woken, False)
        if self._agent is not None:
            self._agent.end_streams()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        if self._under_way:
            # Before the server is told to stop: from then on it reads nothing, not even the rest of a body.
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._quiet.wait()
        if self._server is not None:
            await self._server.finish(_CLOSE_S)
        for listener in listeners:
            await listener.wait_closed()

    # --- one request --------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._server is not None
        assert self._loop is not None
        self._server.heard(request)
        self._under_way += 1
        began = self._loop.time() if self._access_log else 0.0
        path, _, query = _target(request.raw_path).partition("?")
        match = self._routes.match(path)
        endpoint = _endpoint(request.method, match)
        name = endpoint.name if endpoint else _NO_ROUTE
        status, size = access_log.HUNG_UP, 0
        try:
            answer, headers = await self._decide(request, path, query, match, endpoint)
            status, size = answer.status, len(answer.body)
            self.numbers.requests[name, status] += 1
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s %s %s %d", request.remote, request.method, path, status)
            if answer.stream is not None:
                response, size = await stream(request, answer, headers)
                return response
            whole = Whole(status, headers, answer.body)
            if self._closing or (status >= 400 and not request.content.is_eof()):
                whole.force_close()  # a refused body is not read to its end
            return whole
        finally:
            self._under_way -= 1
            if self._closing and not self._under_way:
                self._quiet.set()
            if self._access_log:
                access_log.write(request, name, status, size, self._loop.time() - began)

    async def _decide(
        self, request: web.BaseRequest, path: str, query: str, match: Match | None, endpoint: Endpoint | None
    ) -> tuple[Answer, dict[str, str]]:
        """The answer to a request, errors included, and its headers."""
        parameters: Query = ()
        try:
            if query:
                parameters = decode_query(query)
            if match is None or endpoint is None or endpoint.view is None:
                answer = _no_view(request.method, path, match, endpoint)
            else:
                call = self._call(request, endpoint, match, parameters)
                # Most requests are plain reads, and a coroutine or two more cost them as much as the reading.
                plain = endpoint.takes is None and endpoint is not self._ready
                at_once = plain and _WAITING.isdisjoint(call.values)
                begun = endpoint.view(call) if at_once else self._answer(request, call)
                answer = begun if isinstance(begun, Answer) else await begun
        except Refusal as refusal:
            answer = refusal.answer()
        except HomeportError as error:
            answer = refused(error)
        except Exception:
            log.exception("%s %s failed by a defect of the registry", request.method, path)
            answer = Answer(status=500, body=b"The registry failed; its log says more", content_type=TEXT)
        headers = {"Content-Type": answer.content_type}
        if answer.index:
            headers["X-Consul-Index"] = str(answer.index)
        if endpoint is not None and endpoint.read:
            headers |= _READ_HEADERS[_consistency(parameters) if parameters else "leader"]
            if self._operations.store.read_only is not None:
                headers["X-Consul-KnownLeader"] = "false"  # what Consul says while nothing can be written
        if answer.headers:
            headers |= answer.headers
        if parameters and answer.content_type == JSON and any(name == "pretty" for name, _ in parameters):
            answer = msgspec.structs.replace(answer, body=bodies.pretty(answer.body))
        return answer, headers

    def _call(self, request: web.BaseRequest, endpoint: Endpoint, match: Match, parameters: Query) -> Call:
        """Whoever may not call learns nothing else."""
        assert self._agent is not None
        caller = caller_of(request.headers, parameters)
        authorize(self._operations.token, caller, endpoint.access)
        refuse_pages(self._operations.token, request.headers, endpoint.access)
        values = decode_parameters(endpoint, parameters)
        call = Call(endpoint, self._agent, caller, decode_variable(match.variable), values)
        call.asker = request
        return call

    async def _answer(self, request: web.BaseRequest, call: Call) -> Answer:
        endpoint = call.endpoint
        if endpoint.takes == STREAM:
            call.pieces = pieces(request, endpoint.body_bytes_max)
        elif endpoint.takes is not None:
            call.body = await self._bodies.read(request, endpoint.body_bytes_max)
            decode_body(call)
        if endpoint is self._ready and self._closing:
            raise Refusal(503, "closing\n")
        if call.flag("consistent"):
            await self._operations.store.barrier()
        if endpoint.resource is not None and (call.number("index") or call.text("hash")):
            await self._until_news(call, endpoint.resource(call))
        answer = await self._view(call)
        return with_content_hash(answer) if "hash" in call.values else answer

    async def _view(self, call: Call) -> Answer:
        assert call.endpoint.view is not None
        begun = call.endpoint.view(call)
        return begun if isinstance(begun, Answer) else await begun

    # --- blocking queries ---------------------------------------------------------------------------------------

    async def _until_news(self, call: Call, resource: Resource) -> None:
        """Return when the call would be answered by something new, or its wait is over."""
        assert self._loop is not None
        assert self._agent is not None
        deadline = self._loop.time() + self._wait_s(call)
        waits = self._agent.waits
        numbers = self.numbers
        while await self._is_known(call, resource) and not self._closing:
            if numbers.blocked >= self._blocked_max:
                raise crowded("blocking queries")
            unsaid = waits.unsaid
            now = self._loop.time()
            unsure = not call.text("hash") and now < resource.unsure_until(call.number("index") or 0)
            woken: asyncio.Future[bool] = self._loop.create_future()
            unsubscribe = resource.subscribe(partial(_wake, woken, True))
            timer = self._loop.call_at(min(deadline, now + UNSURE_WAIT_S) if unsure else deadline, _wake, woken, False)
            self._blocked[woken] = None
            numbers.blocked += 1
            try:
                if not await woken:
                    return
                numbers.wakes += 1
                if waits.unsaid != unsaid and not call.text("hash"):
                    return  # it looks different, whatever its index
            finally:
                numbers.blocked -= 1
                del self._blocked[woken]
                timer.cancel()
                unsubscribe()

    async def _is_known(self, call: Call, resource: Resource) -> bool:
        """Whether the caller has what it would be told: this content, or all up to this index.

        An index from another history, beyond anything this store has reached, says nothing of what it has.
        """
        if known := call.text("hash"):
            return content_hash(await self._view(call)) == known  # which does not wait: the view is of a read
        return resource.index() <= (call.number("index") or 0) <= self._operations.store.mvcc.revision

    def _wait_s(self, call: Call) -> float:
        wait_s = call.seconds("wait") or 0.0
        wait_s = min(wait_s, BLOCKING_WAIT_S_MAX) if wait_s > 0 else WAIT_S_DEFAULT
        return wait_s + self._rng.random() * wait_s * WAIT_JITTER

    # --- what happens -------------------------------------------------------------------------------------------

    def look_different(self, events: list[ServiceEvent]) -> None:
        """Something looks different although no revision says so; the catalogue has just taken it in."""
        if self._agent is not None and not self._closing:
            assert self._loop is not None
            self._agent.waits.look_different(events, self._loop.time())

    def _revision(self, revision: int, changes: tuple[Change, ...]) -> None:
        assert self._agent is not None
        if not self._closing:
            self._agent.revision(revision, changes)


def _target(raw: str) -> str:
    """The path and query as they came; of a target in absolute form, which proxies send, the part after the host."""
    return raw if raw.startswith("/") else "/" + raw.partition("://")[2].partition("/")[2]


def _endpoint(method: str, match: Match | None) -> Endpoint | None:
    """The row that a request is for, if there is one."""
    if match is None:
        return None
    found = match.rows.get(method) or match.rows.get("*")
    return match.rows.get("GET") if found is None and method == "HEAD" else found


def _no_view(method: str, path: str, match: Match | None, endpoint: Endpoint | None) -> Answer:
    """The answer where there is nothing to call: which of the reasons it is matters to whoever wrote the client."""
    if match is None:
        text = f"There is no endpoint {path!r}"
        return Answer(status=404, body=text.encode(), content_type=TEXT)
    if endpoint is not None:
        text = f"{path} is not supported by this registry: {endpoint.note}"
        return Answer(status=endpoint.statuses[0], body=text.encode(), content_type=TEXT)
    allowed = ", ".join(sorted(name for name in match.rows if name != "*"))
    if method == "OPTIONS":
        return Answer(content_type=TEXT, headers={"Allow": allowed})
    text = f"method {method} not allowed; allowed: {allowed}"
    return Answer(status=405, body=text.encode(), content_type=TEXT, headers={"Allow": allowed})


def _consistency(parameters: Query) -> str:
    return next((name for name, _ in parameters if name in _READ_HEADERS), "leader")


def _wake(woken: asyncio.Future[bool], changed: bool) -> None:
    if not woken.done():
        woken.set_result(changed)


def _advertised(host: str) -> str:
    """The node's address as clients are told it: where the front listens, if that is one address."""
    return "127.0.0.1" if host in ("", "0.0.0.0", "::", "localhost") else host
