"""The pure parts of a client: what is held back after a reconnect, and what goes on the wire."""

from __future__ import annotations

import msgspec
import pytest

from homeport.client import Check, Instance, InvalidArgument, ServiceEvent
from homeport.client.core.messages import Register
from homeport.client.core.model import validate_check
from homeport.client.core.resolver import HOLD_S, ServiceView


def _all(revision: int, *ids: str) -> ServiceEvent:
    found = tuple(Instance(service="s", id=id_) for id_ in ids)
    return ServiceEvent(service="s", revision=revision, snapshot=True, changed=found)


def test_what_is_held_back_is_let_go_in_time_however_often_the_link_breaks() -> None:
    view = ServiceView("s")
    view.apply(_all(5, "a", "b", "c"), now=0.0)
    held: list[float | None] = []
    for reconnect in range(10):
        view.reconnected()
        view.apply(_all(1), now=10.0 + reconnect * HOLD_S / 9)
        held.append(view.held_until)
    assert held == [10.0 + HOLD_S] * 9 + [None]
    assert not view.instances


def test_a_later_loss_is_held_back_for_its_own_time() -> None:
    view = ServiceView("s")
    view.apply(_all(5, "a", "b", "c"), now=0.0)
    view.reconnected()
    view.apply(_all(1), now=10.0)
    view.apply(_all(2, "a", "b", "c"), now=20.0)
    view.reconnected()
    view.apply(_all(1), now=1000.0)
    assert view.held_until == 1000.0 + HOLD_S, "not that of the first, which was over"
    assert len(view.instances) == 3


def test_what_is_empty_is_not_sent() -> None:
    check = Check(name="c", kind="tcp", address="h:1")
    instance = Instance(service="s", id="i", meta={}, extra={}, checks=(check,))
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(Register(instance=instance)))
    assert sent == {"instance": {"service": "s", "id": "i", "checks": [{"name": "c", "kind": "tcp", "address": "h:1"}]}}
    full = msgspec.structs.replace(instance, meta={"a": "b"})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(full), type=Instance) == full
    assert msgspec.json.decode(msgspec.json.encode(instance), type=Instance) == instance
    with pytest.raises(TypeError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(instance), type=Instance).meta["a"] = "b"


@pytest.mark.parametrize("port", ["²", "٣", "0", "65536", "", "9" * 5000, "+1", "1_0"])
def test_a_tcp_check_needs_a_port_in_decimal(port: str) -> None:
    with pytest.raises(InvalidArgument, match="host:port"):
        validate_check(Check(name="c", kind="tcp", address=f"h:{port}"))
