"""Photos by tag, with what is known of their owners. It keeps nothing and asks two other services."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from homeport.mesh.demo.apps.service import Surroundings, answer, serve

NEEDS = ("photo-upload", "user-profile")


def routes(around: Surroundings) -> Iterable[web.AbstractRouteDef]:
    async def search(request: web.Request) -> web.Response:
        tag = request.query.get("tag", "")
        if not tag:
            return answer({"error": "say which tag: /search?tag=..."}, 400)
        limit = around.settings.now.results_max
        photos = await around.peers.get(request, "photo-upload", "/photos", tag=tag, limit=str(limit))
        owners = sorted({photo["owner"] for photo in photos})
        bios = await around.peers.get(request, "user-profile", "/users", names=",".join(owners)) if owners else {}
        for photo in photos:
            photo["bio"] = bios.get(photo["owner"])
        return answer({"tag": tag, "page_size": limit, "photos": photos})

    return [web.get("/search", search)]


if __name__ == "__main__":
    serve("search", routes, needs=NEEDS)
