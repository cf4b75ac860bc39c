"""What somebody may have meant who named a service that is not there."""

from __future__ import annotations

from difflib import get_close_matches

from homeport.client import Client

_SHOWN_MAX = 8  # names of services, where none is close: enough to recognise one's own registry


async def service_hint(client: Client, name: str) -> str:
    """`. Did you mean 'orders'?`, or which services there are."""
    known = sorted(await client.services())
    if not known:
        return ": the registry knows no service"
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f". Did you mean {close[0]!r}?"
    more = f" and {len(known) - _SHOWN_MAX} more" if len(known) > _SHOWN_MAX else ""
    return f"; there are: {', '.join(known[:_SHOWN_MAX])}{more}"
