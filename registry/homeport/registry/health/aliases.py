"""`alias` checks: an instance that is as well as another one, or as a node.

Told of every key that a revision touched, this reports each alias whose target looks different now: at once, in the
same turn of the loop. Nothing is polled, and nothing is remembered but who is an alias of whom.

An alias of an alias looks through it, at the checks behind: were it to believe what is written of the other, two that
are aliases of each other would keep each other critical for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from homeport.client.core.model import SEVERITY, Check, InstanceKey, Status
from homeport.registry.core.catalogue import Catalogue
from homeport.registry.core.entries import Entry
from homeport.registry.core.health import Verdict, aggregate

Report = Callable[[InstanceKey, int, str, Verdict], None]


class Aliases:
    """Follows the catalogue.

    Args:
        in_charge: whether the checks of an instance, or a node, are this registry's to look after.
        report: called with `(instance key, create_revision, check name, verdict)` of a check that is to change.
    """

    def __init__(self, catalogue: Catalogue, in_charge: Callable[[Entry], bool], report: Report) -> None:
        self._catalogue = catalogue
        self._in_charge = in_charge
        self._report = report
        self._of: dict[InstanceKey, dict[InstanceKey, None]] = {}  # target -> those with an alias of it
        self._targets: dict[InstanceKey, list[InstanceKey]] = {}  # and back

    def touched(self, touched: Iterable[InstanceKey]) -> None:
        """Take in that these instances, or with an empty id nodes, may have changed, come or gone."""
        changed = list(touched)
        for key in changed:
            entry = self._catalogue.find(*key)
            checks = _checks(entry)
            if key in self._targets or (checks and any(check.kind == "alias" for check in checks)):
                self._follow(key, entry)
        if not self._targets:
            return
        concerned = dict.fromkeys(changed)
        ahead = changed
        while ahead:
            following = [one for key in ahead for one in self._followers(key) if one not in concerned]
            concerned.update(dict.fromkeys(following))
            ahead = following
        for key in concerned:
            if key in self._targets:
                entry = self._catalogue.find(*key)
                if entry is not None and self._in_charge(entry):
                    self._tell(key, entry)

    def _followers(self, key: InstanceKey) -> Iterable[InstanceKey]:
        """Whose verdict depends on this one directly: those with an alias of it, or of an instance on this node."""
        yield from self._of.get(key, ())
        node = self._catalogue.nodes.get(key[0]) if not key[1] else None
        if node is not None:
            for id_ in node.ids:
                yield from self._of.get((key[0], id_), ())

    def _follow(self, key: InstanceKey, entry: Entry | None) -> None:
        for target in self._targets.pop(key, ()):
            followers = self._of[target]
            followers.pop(key, None)
            if not followers:
                del self._of[target]
        targets = [target_of(key, check) for check in _checks(entry) if check.kind == "alias"]
        if targets:
            self._targets[key] = list(dict.fromkeys(targets))
            for target in self._targets[key]:
                self._of.setdefault(target, {})[key] = None

    def _tell(self, key: InstanceKey, entry: Entry) -> None:
        for check in _checks(entry):
            if check.kind == "alias":
                verdict = self._verdict(key, target_of(key, check))
                record = self._catalogue.checks.one(key, check.name)
                if record is None or (record.status, record.output) != (verdict.status, verdict.output):
                    self._report(key, entry.registered.create_revision, check.name, verdict)

    def _verdict(self, own: InstanceKey, target: InstanceKey) -> Verdict:
        """The worst of the target and of all that it is an alias of, aliases themselves and `own` left out."""
        worst: Status = "passing"
        why = f"{_name(target)} is passing"
        seen = {own: None, target: None}
        ahead = [target] if target != own else []
        while ahead:
            key = ahead.pop()
            status, words = self._looked_at(key)
            if SEVERITY[status] > SEVERITY[worst]:
                worst, why = status, f"{_name(key)} {words}"
            behind = self._targets.get(key, [])
            for one in [*behind, (key[0], "")] if key[1] else behind:
                if one not in seen:
                    seen[one] = None
                    ahead.append(one)
        return Verdict(worst, f"alias: {why}")

    def _looked_at(self, key: InstanceKey) -> tuple[Status, str]:
        """The status of an instance or a node but for its aliases, and words for it."""
        entry = self._catalogue.find(*key)
        if entry is None:
            if not key[1] and key[0] in self._catalogue.nodes:  # one that nobody registered, for what is on it
                return "passing", "is passing"
            return "critical", "is not there"
        if entry.registered.state != "up":
            return "critical", f"has the state {entry.registered.state}"
        if entry.stale and entry.seen.status != "passing":
            return "critical", "is only kept, as stale"
        aliases = {check.name for check in _checks(entry) if check.kind == "alias"}
        checks = self._catalogue.checks.statuses(key, entry.registered)
        status = aggregate(one for name, one in checks if name not in aliases)
        return status, f"is {status}"


def target_of(key: InstanceKey, check: Check) -> InstanceKey:
    """What an alias check of the instance `key` is an alias of."""
    return (check.alias_node or key[0], check.alias_id)


def _name(key: InstanceKey) -> str:
    return f"{key[1]!r} on node {key[0]!r}" if key[1] else f"node {key[0]!r}"


def _checks(entry: Entry | None) -> tuple[Check, ...]:
    return () if entry is None else entry.registered.checks
