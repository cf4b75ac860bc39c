"""Drives tooz's Consul driver against the address given: exits well and says so if all was as against Consul."""

from __future__ import annotations

import importlib
import sys
from typing import Any

coordination: Any = importlib.import_module("tooz.coordination")


def main(at: str) -> None:
    members = [coordination.get_coordinator(f"consul://{at}", name) for name in (b"one", b"two")]
    for member in members:
        member.start()
    one, two = members
    mine, theirs = one.get_lock(b"job"), two.get_lock(b"job")
    assert mine.acquire()
    assert theirs.acquire(blocking=False) is False
    assert mine.release()
    assert theirs.acquire(blocking=False) is True
    assert theirs.release()
    one.heartbeat()
    one.create_group(b"crew").get()
    try:
        two.create_group(b"crew").get()
    except coordination.GroupAlreadyExist:
        pass
    else:
        raise AssertionError("a group was made twice")
    assert one.get_groups().get() == [b"crew"]
    one.join_group(b"crew", b"cook").get()
    two.join_group(b"crew", b"mate").get()
    assert set(one.get_members(b"crew").get()) == {b"one", b"two"}
    assert one.get_member_capabilities(b"crew", b"two").get() == b"mate"
    for member in members:
        member.leave_group(b"crew").get()
    one.delete_group(b"crew").get()
    assert one.get_groups().get() == []
    held = one.get_lock(b"left")
    assert held.acquire()
    for member in members:
        member.stop()


main(sys.argv[1])
print("all is well")
