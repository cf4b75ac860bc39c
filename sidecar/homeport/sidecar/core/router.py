"""A document of routes made ready for requests: what decides, per request and without I/O, where it goes and as what.

Strategy: all that does not depend on the request is computed once, when the document arrives. Counters and token
buckets live here; a router that replaces another takes them over for the routes of the same name (or place, without
one), so that a weight that is shifted every second does not give away a burst every second.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from homeport.client.core.backoff import Rng
from homeport.client.core.balancing import Subset
from homeport.client.core.patterns import Pattern
from homeport.sidecar.core.rates import TokenBucket
from homeport.sidecar.core.routing import (
    Destination,
    HeaderEdits,
    HeaderMatch,
    Match,
    RateLimit,
    Redirect,
    Rewrite,
    Route,
    Routing,
)


class Place:
    """A service, or some of its instances; `service` empty: the one that was asked for."""

    __slots__ = ("service", "subset", "view")

    def __init__(self, service: str, subset: Subset | None) -> None:
        self.service = service
        self.subset = subset
        # What tells one set of instances from another, and stays the same over documents.
        self.view: tuple[object, ...] | None = None
        if subset is not None:
            meta = tuple(sorted(subset.meta.items()))
            self.view = (subset.tag, subset.version, subset.zone, subset.fallback, meta)


class Edits:
    """What happens to a head's plain header lines."""

    __slots__ = ("_added", "_dropped")

    def __init__(self, edits: HeaderEdits) -> None:
        self._dropped = frozenset(name.lower().encode() for name in (*edits.remove, *edits.set))
        self._added = [f"{name}: {value}".encode() for name, value in (*edits.set.items(), *edits.add.items())]

    def applied(self, lines: Iterable[bytes]) -> list[bytes]:
        """The lines as they go on."""
        dropped = self._dropped
        kept = [line for line in lines if line.partition(b":")[0].lower() not in dropped] if dropped else list(lines)
        return kept + self._added


class RoutePlan:
    """One route, ready."""

    __slots__ = (
        "_cumulative", "_matches", "_methods", "_path", "_places", "_rewritten", "bucket", "mirror", "mirrored",
        "redirect", "request_edits", "requests", "response_edits", "rewrite", "route",
    )  # fmt: skip

    def __init__(self, route: Route, bucket: TokenBucket | None) -> None:
        self.route = route
        self.bucket = bucket
        self.requests = 0
        self.mirrored = 0
        self._methods = frozenset(method.encode() for method in route.match.methods)
        self._path = _path_test(route.match)
        self._matches = [_header_test(each) for each in route.match.headers]
        to = route.to or (Destination(),)
        self._places = [Place(each.service, each.subset) for each in to]
        self._cumulative = list(accumulate(each.weight for each in to))
        mirror = route.mirror
        self.mirror = Place(mirror.service, mirror.subset) if mirror is not None else None
        self.request_edits = Edits(route.request_headers) if route.request_headers is not None else None
        self.response_edits = Edits(route.response_headers) if route.response_headers is not None else None
        self.rewrite = route.rewrite
        self._rewritten = Pattern(route.rewrite.regex) if route.rewrite is not None and route.rewrite.regex else None
        self.redirect = route.redirect

    def matches(self, method: bytes, path: str, lines: Sequence[bytes]) -> bool:
        """Whether the route is for a request with this method, path (without query) and these header lines."""
        if self._methods and method not in self._methods:
            return False
        if self._path is not None and not self._path(path):
            return False
        return all(test(lines) for test in self._matches)

    def why_not(self, method: bytes, path: str, lines: Sequence[bytes]) -> str:
        """What of the route such a request does not meet, in words; empty: nothing."""
        match = self.route.match
        if self._methods and method not in self._methods:
            return f"its methods are {', '.join(match.methods)}"
        if self._path is not None and not self._path(path):
            kind, says = next((kind, says) for kind in ("path", "prefix", "regex") if (says := getattr(match, kind)))
            return f"its {kind} is {says}"
        for condition, test in zip(match.headers, self._matches, strict=True):
            if not test(lines):
                return f"its header {condition.name} must {_in_words(condition)}"
        return ""

    @property
    def shares(self) -> list[tuple[Place, float]]:
        """Where requests go, each with its chance."""
        whole = self._cumulative[-1]
        weights = [each.weight for each in self.route.to or (Destination(),)]
        return [(place, weight / whole) for place, weight in zip(self._places, weights, strict=True)]

    def place(self, rng: Rng) -> Place:
        """Where the next request goes: each destination has a chance in proportion to its weight."""
        if len(self._places) == 1:
            return self._places[0]
        sums = self._cumulative
        return self._places[bisect_right(sums, rng.random() * sums[-1], hi=len(sums) - 1)]

    def rewritten(self, target: bytes) -> bytes:
        """The target to ask for instead."""
        rewrite = self.rewrite
        assert rewrite is not None
        path, mark, query = target.decode("latin-1").partition("?")
        if not path.startswith("/"):  # `OPTIONS *`
            return target
        if self._rewritten is not None:
            path = self._rewritten.replaced(rewrite.replacement, path)
            path = path if path.startswith("/") else "/" + path
        else:
            path = _replaced(rewrite, self.route.match, path)
        return (path + mark + query).encode("latin-1")

    def location(self, target: bytes, host: bytes, scheme: bytes) -> bytes:
        """What a redirect says."""
        redirect = self.redirect
        assert redirect is not None
        path, mark, query = target.decode("latin-1").partition("?")
        where = _replaced(redirect, self.route.match, path) + mark + query
        if redirect.host or redirect.scheme:
            where = f"{redirect.scheme or scheme.decode()}://{redirect.host or host.decode('latin-1')}{where}"
        elif where.startswith("//"):  # would be read as another host's name
            where = "/." + where
        return where.encode("latin-1")


class Router:
    """The routes of one service.

    Args:
        earlier: What this one replaces.
        share: How many processes share what a rate limit lets through.
    """

    __slots__ = ("plans", "routing", "share", "unmatched")

    def __init__(self, routing: Routing, earlier: Router | None = None, share: int = 1) -> None:
        self.routing = routing
        self.share = share
        self.unmatched = 0
        self.plans: list[RoutePlan] = []
        before = {plan.route.name or at: plan for at, plan in enumerate(earlier.plans)} if earlier is not None else {}
        for at, route in enumerate(routing.routes):
            self.plans.append(self._planned(route, before.get(route.name or at)))

    def find(self, method: bytes, target: bytes, lines: Sequence[bytes]) -> RoutePlan | None:
        """The first route that is for this request; None: it goes to any instance of the service."""
        path = target.partition(b"?")[0].decode("latin-1")
        for plan in self.plans:
            if plan.matches(method, path, lines):
                plan.requests += 1
                return plan
        self.unmatched += 1
        return None

    def _planned(self, route: Route, before: RoutePlan | None) -> RoutePlan:
        limit = route.rate_limit
        bucket = _bucket_of(limit, self.share) if limit is not None else None
        if before is not None and before.route.rate_limit == limit:
            bucket = before.bucket
        plan = RoutePlan(route, bucket)
        if before is not None:  # counters only rise
            plan.requests, plan.mirrored = before.requests, before.mirrored
        return plan


def _bucket_of(limit: RateLimit, share: int) -> TokenBucket:
    burst = limit.burst or limit.per_s
    return TokenBucket(limit.per_s / share, max(1.0, burst / share))


def _path_test(match: Match) -> Callable[[str], bool] | None:
    if match.path:
        return match.path.__eq__
    if match.prefix:
        whole, within = match.prefix, match.prefix if match.prefix.endswith("/") else match.prefix + "/"
        return lambda path: path == whole or path.startswith(within)
    if match.regex:
        return Pattern(match.regex).matches
    return None


def _header_test(match: HeaderMatch) -> Callable[[Sequence[bytes]], bool]:
    name = match.name.lower().encode() + b":"
    says = _value_test(match)

    def test(lines: Sequence[bytes]) -> bool:
        found = any(line[: len(name)].lower() == name and says(line[len(name) :]) for line in lines)
        return found != match.invert

    return test


def _in_words(match: HeaderMatch) -> str:
    says = (("be", match.exact), ("begin with", match.prefix), ("match", match.regex))
    wanted = next((f"{verb} {value}" for verb, value in says if value is not None), "be there")
    return f"not {wanted}" if match.invert else wanted


def _value_test(match: HeaderMatch) -> Callable[[bytes], bool]:
    if match.regex is not None:
        pattern = Pattern(match.regex)
        return lambda value: pattern.matches(value.strip().decode("latin-1"))
    if match.prefix is not None:
        prefix = match.prefix.encode()
        return lambda value: value.strip().startswith(prefix)
    if match.exact is not None:
        exact = match.exact.encode()
        return lambda value: value.strip() == exact
    return lambda value: True


def _replaced(how: Rewrite | Redirect, match: Match, path: str) -> str:
    if how.path:
        return how.path
    if how.prefix:
        rest = path[len(match.prefix.rstrip("/")) :]  # empty, or begins with /
        return how.prefix.rstrip("/") + rest or "/"
    return path
