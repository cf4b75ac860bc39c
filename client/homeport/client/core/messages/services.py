"""Registering instances, keeping them registered, and asking who is there."""

from __future__ import annotations

from homeport.client.core.messages.base import Answer, Done, Request
from homeport.client.core.model import Instance, State, Status


class Registered(Answer, frozen=True, omit_defaults=True):
    """The registration stands at `revision`; `lease` (0 without a TTL) proves ownership in later calls."""

    lease: int
    ttl_s: float
    create_revision: int
    revision: int


class Register(Request[Registered], frozen=True, omit_defaults=True):
    """Register an instance, or replace the registration of the same node and id.

    A replacement gets a lease of its own, which ends the say of whoever registered before. Whoever holds the `lease`
    already and registers the very same again keeps it, renewed, and nothing is written. With `expect_free`, nobody
    else's registration is replaced: that is `LeaseGone`.
    """

    method = "register"
    instance: Instance
    lease: int = 0
    expect_free: bool = False


class Renewed(Answer, frozen=True, omit_defaults=True):
    """Per lease asked for, in that order, its TTL in seconds, or 0.0 if it is gone.

    `revision` is that of the store, if one of them was another replica's until now; else 0.
    """

    ttls_s: tuple[float, ...]
    revision: int = 0


class Renew(Request[Renewed], frozen=True, omit_defaults=True):
    """Renew leases; writes nothing, but for those that another replica has looked after until now.

    With `moved`, the instances on them belong to this connection from now on, as if they had been registered over it:
    when it breaks, they are looked at.
    """

    method = "renew"
    leases: tuple[int, ...]
    moved: bool = False


class Deregister(Request[Done], frozen=True, omit_defaults=True):
    """Remove an instance; with `lease`, only if that lease still is the one that registered it."""

    method = "deregister"
    id: str
    node: str = ""  # empty: the registry's own node
    lease: int = 0


class SetState(Request[Done], frozen=True, omit_defaults=True):
    """Set an instance `up`, `draining` or in `maintenance`; with `lease`, only as its owner."""

    method = "set_state"
    id: str
    state: State
    node: str = ""
    lease: int = 0


class WaitApplied(Request[Done], frozen=True, omit_defaults=True):
    """Answer when every live watcher of the service has applied `revision`, or after `timeout_s` (`applied=False`)."""

    method = "wait_applied"
    service: str
    revision: int
    timeout_s: float


class ReportCheck(Request[Done], frozen=True, omit_defaults=True):
    """Report the status of a `ttl` check, which also starts its TTL anew."""

    method = "report_check"
    id: str
    check: str
    status: Status
    node: str = ""
    output: str = ""


class Resolved(Answer, frozen=True, omit_defaults=True):
    """One page of a service's instances; pages of one answer carry the same `revision`, the service's own."""

    revision: int
    instances: tuple[Instance, ...]
    more: bool = False


class Resolve(Request[Resolved], frozen=True, omit_defaults=True):
    """The instances of a service: those that can take traffic, or with `passing=False` all of them."""

    method = "resolve"
    service: str
    passing: bool = True
    offset: int = 0


class ServiceList(Answer, frozen=True, omit_defaults=True):
    """Services in the order of their names, with the tags their instances carry; `more` says that there are others."""

    revision: int
    services: dict[str, tuple[str, ...]]
    more: bool = False


class Services(Request[ServiceList], frozen=True, omit_defaults=True):
    """Every service whose name comes after `after`, a page at a time."""

    method = "services"
    after: str = ""


class Explained(Answer, frozen=True, omit_defaults=True):
    """Whether an instance takes new traffic, and every reason in words, what decides first."""

    available: bool
    reasons: tuple[str, ...]


class Explain(Request[Explained], frozen=True, omit_defaults=True):
    """Why an instance is in or out of rotation; `NotFound` if there is none."""

    method = "explain"
    id: str
    node: str
