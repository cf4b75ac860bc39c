"""Where photos are kept: uploaded under an id of the client's choosing, so that uploading twice is uploading once."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from homeport.mesh.demo.apps.service import Surroundings, answer, names, serve

SCHEMA = """
CREATE TABLE IF NOT EXISTS photos (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, taken_ms INTEGER NOT NULL, type TEXT NOT NULL, image BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS photos_by_owner ON photos (owner, taken_ms DESC);
CREATE TABLE IF NOT EXISTS tags (tag TEXT NOT NULL, photo TEXT NOT NULL, PRIMARY KEY (tag, photo)) WITHOUT ROWID;
"""
SIGNATURES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff", "image/gif": b"GIF8"}
LISTED_MAX = 500  # photos in one listing, however many were asked for

NEEDS = ("user-profile",)


def routes(around: Surroundings) -> Iterable[web.AbstractRouteDef]:
    async def put(request: web.Request) -> web.Response:
        settings = around.settings.now
        image = await request.read()
        if request.content_type not in settings.photo_types:
            return answer({"error": f"allowed types: {', '.join(settings.photo_types)}"}, 415)
        if len(image) > settings.photo_bytes_max:
            return answer({"error": f"allowed size: at most {settings.photo_bytes_max} bytes"}, 413)
        if not image.startswith(SIGNATURES.get(request.content_type, b"")):
            return answer({"error": f"this is not {request.content_type}"}, 400)
        owner, taken_ms = request.query.get("by", ""), request.query.get("taken_ms", "")
        if not taken_ms.isdigit():
            return answer({"error": "taken_ms must be a whole number"}, 400)
        if await around.peers.get(request, "user-profile", f"/users/{owner}") is None:
            return answer({"error": f"no user {owner!r}"}, 404)
        photo = request.match_info["id"]
        await around.store.write(
            [
                (
                    "INSERT OR REPLACE INTO photos VALUES (?, ?, ?, ?, ?)",
                    (photo, owner, int(taken_ms), request.content_type, image),
                ),
                ("DELETE FROM tags WHERE photo = ?", (photo,)),
                *(("INSERT OR IGNORE INTO tags VALUES (?, ?)", (tag, photo)) for tag in names(request, "tags")),
            ]
        )
        return answer({"id": photo})

    async def image(request: web.Request) -> web.Response:
        rows = await around.store.read("SELECT type, image FROM photos WHERE id = ?", [request.match_info["id"]])
        if not rows:
            return answer({"error": "no such photo"}, 404)
        return web.Response(body=rows[0][1], content_type=rows[0][0])

    async def listing(request: web.Request) -> web.Response:
        owners, tag, limit = names(request, "by"), request.query.get("tag"), request.query.get("limit", "")
        parameters: list[object]
        if tag is None:
            chosen, parameters = f"owner IN ({','.join('?' * len(owners))})", [*owners]
        else:
            chosen, parameters = "id IN (SELECT photo FROM tags WHERE tag = ?)", [tag]
        parameters.append(min(int(limit), LISTED_MAX) if limit.isdigit() else LISTED_MAX)
        rows = await around.store.read(
            f"SELECT id, owner, taken_ms FROM photos WHERE {chosen} ORDER BY taken_ms DESC, id DESC LIMIT ?", parameters
        )
        return answer([{"id": photo, "owner": owner, "taken_ms": taken_ms} for photo, owner, taken_ms in rows])

    return [web.put("/photos/{id}", put), web.get("/photos/{id}", image), web.get("/photos", listing)]


if __name__ == "__main__":
    serve("photo-upload", routes, SCHEMA, NEEDS)
