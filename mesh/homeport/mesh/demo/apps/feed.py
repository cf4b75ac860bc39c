"""What a user sees first: the newest photos of those they follow. It keeps nothing and asks three other services."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from homeport.mesh.demo.apps.service import Surroundings, answer, serve

NEEDS = ("follower", "photo-upload", "user-profile")


def routes(around: Surroundings) -> Iterable[web.AbstractRouteDef]:
    async def feed(request: web.Request) -> web.Response:
        user = request.match_info["user"]
        page_size = around.settings.now.page_size
        followed = await around.peers.get(request, "follower", f"/users/{user}/following") or []
        photos = []
        if followed:
            photos = await around.peers.get(
                request, "photo-upload", "/photos", by=",".join(followed), limit=str(page_size)
            )
        owners = sorted({photo["owner"] for photo in photos})
        bios = await around.peers.get(request, "user-profile", "/users", names=",".join(owners)) if owners else {}
        for photo in photos:
            photo["bio"] = bios.get(photo["owner"])
        return answer({"user": user, "page_size": page_size, "photos": photos})

    return [web.get("/feeds/{user}", feed)]


if __name__ == "__main__":
    serve("feed", routes, needs=NEEDS)
