"""Who the users are: a name and a line about themselves."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from aiohttp import web

from homeport.mesh.demo.apps.service import Surroundings, answer, names, serve

SCHEMA = "CREATE TABLE IF NOT EXISTS users (name TEXT PRIMARY KEY, bio TEXT NOT NULL) WITHOUT ROWID"


class Profile(msgspec.Struct, frozen=True):
    """What a user says of themselves."""

    bio: str


def routes(around: Surroundings) -> Iterable[web.AbstractRouteDef]:
    async def put(request: web.Request) -> web.Response:
        try:
            profile = msgspec.json.decode(await request.read(), type=Profile)
        except msgspec.MsgspecError as error:
            return answer({"error": str(error)}, 400)
        name = request.match_info["name"]
        await around.store.write([("INSERT OR REPLACE INTO users VALUES (?, ?)", (name, profile.bio))])
        return answer({"name": name, "bio": profile.bio})

    async def get(request: web.Request) -> web.Response:
        rows = await around.store.read("SELECT name, bio FROM users WHERE name = ?", [request.match_info["name"]])
        if not rows:
            return answer({"error": "no such user"}, 404)
        return answer({"name": rows[0][0], "bio": rows[0][1]})

    async def get_many(request: web.Request) -> web.Response:
        wanted = names(request, "names")
        marks = ",".join("?" * len(wanted))
        rows = await around.store.read(f"SELECT name, bio FROM users WHERE name IN ({marks})", wanted)
        return answer(dict(rows))

    return [web.put("/users/{name}", put), web.get("/users/{name}", get), web.get("/users", get_many)]


if __name__ == "__main__":
    serve("user-profile", routes, SCHEMA)
