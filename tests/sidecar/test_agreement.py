"""On every well-formed exchange the fast path and a plain aiohttp proxy show both ends the same."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import ClientSession, ClientTimeout, HttpVersion10, web

if TYPE_CHECKING:
    from tests.sidecar.conftest import Net

ROUNDS = 120
PATIENCE = ClientTimeout(total=10)
PATHS = ["/", "/a/b?c=d", "/%2e/x", "/a?b=%20c", "/a//b/?", "/" + "long/" * 400, "/a?b=c&b=c;d"]
# What a proxy adds, and what differs between two exchanges by nature.
NOT_COMPARED = {
    "date", "server", "via", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "connection",
    "content-length", "transfer-encoding", "content-type",
}  # fmt: skip

_spec = importlib.util.spec_from_file_location("oracle", Path(__file__).with_name("oracle.py"))
assert _spec is not None
assert _spec.loader is not None
oracle = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)


def compared(headers: Any) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in headers.items() if name.lower() not in NOT_COMPARED]


def some_headers(rng: random.Random) -> list[list[str]]:
    """Headers as they come: repeated, empty, with odd names, with bytes beyond ASCII, long."""
    values = ["", "1", "a, b", 'W/"x"', "\u00e9t\u00e9", "x" * 3000, "a:b", "=?", "\ta \tb"]
    names = [
        "X-A",
        "X-A",
        "x-b",
        "ETag-Of",
        "X!#$%&'*+-.^_`|~9",
        "Cache-Control",
        "Accept-Ranges-Of",
        "X-Forwarded-Port",
    ]
    return [[rng.choice(names), rng.choice(values).strip()] for _ in range(rng.randrange(6))]


async def show(request: web.Request) -> web.StreamResponse:
    """Answer as the request asks, and say what arrived."""
    seen = {
        "method": request.method,
        "path": request.raw_path,
        "host": request.headers["Host"],
        "headers": compared(request.headers),
        "body": (await request.read()).hex(),
    }
    wanted = json.loads(request.headers["X-Wanted"])
    keep = {"Connection": "close"} if wanted["close"] else {}
    body = json.dumps(seen).encode() + b"." * wanted["padding"]
    response: web.StreamResponse
    if wanted["chunked"]:
        response = web.StreamResponse(status=wanted["status"])
        response.headers.extend([*wanted["headers"], *keep.items()])
        if request.version >= (1, 1):
            response.enable_chunked_encoding()
        await response.prepare(request)
        if request.method != "HEAD":
            for at in range(0, len(body), 5000):
                await response.write(body[at : at + 5000])
        await response.write_eof()
        return response
    response = web.Response(status=wanted["status"], body=None if wanted["status"] in (204, 304) else body)
    response.headers.extend([*wanted["headers"], *keep.items()])
    return response


async def test_the_fast_path_agrees_with_a_plain_proxy(net: Net) -> None:
    print("seed", net.seed)
    rng = random.Random(net.seed)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", show)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream = f"127.0.0.1:{runner.addresses[0][1]}"
    sidecar = await net.sidecar(static={"orders": [upstream]})

    async def exchange(session: ClientSession, at: str, **request: Any) -> tuple[int, list[tuple[str, str]], bytes]:
        async with session.request(url=f"http://{at}{request.pop('path')}", **request) as answer:
            return answer.status, compared(answer.headers), await answer.read()

    try:
        async with (
            oracle.plain_proxy(upstream) as plain,
            ClientSession(auto_decompress=False, timeout=PATIENCE) as newer,
            ClientSession(auto_decompress=False, version=HttpVersion10, timeout=PATIENCE) as older,
        ):
            sessions = [newer, older]
            for round_number in range(ROUNDS):
                method = rng.choice(["GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
                status = rng.choice(
                    [200, 200, 200, 201, 204, 206, 226, 301, 304, 400, 404, 410, 418, 429, 451, 500, 501]
                )
                wanted = {
                    "status": status,
                    "chunked": status not in (204, 304) and rng.random() < 0.4,
                    "padding": rng.choice([0, 1, 1000, 70_000, 300_000]),
                    "headers": [*some_headers(rng), ["Set-Cookie", "a=b"], ["Set-Cookie", "c=d; Path=/"]],
                    "close": rng.random() < 0.2,
                }
                size = rng.choice([0, 1, 100, 65_536, 200_000])
                body: Any = rng.randbytes(size) if method in ("POST", "PUT", "PATCH") else None
                chunked = body is not None and rng.random() < 0.5
                request = {
                    "method": method,
                    "path": rng.choice(PATHS),
                    "headers": [
                        ("Host", "orders"),
                        ("X-Wanted", json.dumps(wanted)),
                        ("Cookie", "a=1; b=2"),
                        ("Connection", "X-Gone"),
                        ("X-Gone", "1"),
                        *((name, value) for name, value in some_headers(rng)),
                    ],
                    "data": body,
                    "chunked": chunked or None,
                    "expect100": False,
                    "allow_redirects": False,
                }
                session = rng.choice(sessions[:1] if chunked else sessions)
                if body and session is newer:  # HTTP/1.0 knows neither chunks nor expectations
                    request["expect100"] = rng.random() < 0.3
                expected = await exchange(session, plain, **request)
                got = await exchange(session, sidecar.at["outbound"], **request)
                assert got == expected, f"round {round_number}: {request['method']} {wanted}"
    finally:
        await runner.cleanup()
