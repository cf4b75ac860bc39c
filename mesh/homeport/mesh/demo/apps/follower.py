"""Who follows whom."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from homeport.mesh.demo.apps.service import Surroundings, answer, serve

SCHEMA = """
CREATE TABLE IF NOT EXISTS follows (user TEXT NOT NULL, followed TEXT NOT NULL, PRIMARY KEY (user, followed))
WITHOUT ROWID
"""

NEEDS = ("user-profile",)


def routes(around: Surroundings) -> Iterable[web.AbstractRouteDef]:
    async def follow(request: web.Request) -> web.Response:
        user, followed = request.match_info["user"], request.match_info["followed"]
        if await around.peers.get(request, "user-profile", f"/users/{followed}") is None:
            return answer({"error": f"no user {followed!r} to follow"}, 404)
        await around.store.write([("INSERT OR IGNORE INTO follows VALUES (?, ?)", (user, followed))])
        return answer({"user": user, "follows": followed})

    async def following(request: web.Request) -> web.Response:
        rows = await around.store.read(
            "SELECT followed FROM follows WHERE user = ? ORDER BY followed", [request.match_info["user"]]
        )
        return answer([name for (name,) in rows])

    return [
        web.put("/users/{user}/following/{followed}", follow),
        web.get("/users/{user}/following", following),
    ]


if __name__ == "__main__":
    serve("follower", routes, SCHEMA, NEEDS)
