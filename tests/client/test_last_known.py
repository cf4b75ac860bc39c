"""The file of the last known endpoints: what it keeps, and what it refuses."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from homeport.client.core import snapshot
from homeport.client.core.model import Instance
from homeport.client.core.snapshot import Known, Snapshot, SnapshotError
from homeport.client.last_known import replace

NOW_S = 1_800_000_000.0


def instance(number: int = 1) -> Instance:
    return Instance(service="orders", id=f"orders-{number}", address="127.0.0.1", port=number, tags=("a",))


def made(*instances: Instance, confirmed_at_s: float = NOW_S) -> Snapshot:
    return Snapshot("a-history", (Known("orders", 7, confirmed_at_s, instances),))


def test_what_was_written_is_read() -> None:
    assert snapshot.decode(snapshot.encode(made(instance(1), instance(2))), NOW_S) == made(instance(1), instance(2))


def test_any_changed_byte_and_any_cut_is_noticed() -> None:
    data = snapshot.encode(made(instance(1)))
    rng = random.Random(1)
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << rng.randrange(8)
        with pytest.raises(SnapshotError):
            snapshot.decode(bytes(broken), NOW_S)
        with pytest.raises(SnapshotError):
            snapshot.decode(data[:at], NOW_S)


def test_a_file_of_another_version_is_refused_by_name() -> None:
    with pytest.raises(SnapshotError, match="homeport endpoints 2"):
        snapshot.decode(b"homeport endpoints 2\nwhatever", NOW_S)


def test_endpoints_that_nobody_confirmed_for_too_long_are_left_out() -> None:
    data = snapshot.encode(made(instance(1)))
    assert snapshot.decode(data, NOW_S + snapshot.AGE_S_MAX).services
    assert not snapshot.decode(data, NOW_S + snapshot.AGE_S_MAX + 1).services


def test_more_than_the_file_may_hold_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "SNAPSHOT_BYTES_MAX", 10)
    with pytest.raises(SnapshotError, match="allowed: 10"):
        snapshot.encode(made(instance(1)))


def test_a_write_that_fails_leaves_the_old_file_whole_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deeper" / "endpoints"
    replace(path, b"old")

    def fail(_fd: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="full"):
        replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in path.parent.iterdir()] == ["endpoints"]
