"""Where etcd is, as one word: what is understood, and what is refused with what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeport.client.core.errors import InvalidArgument
from homeport.registry.store.etcd_address import EtcdAddress, parse


def test_endpoints_alone_are_enough() -> None:
    assert parse("etcd://a:1,[::1]:2") == EtcdAddress(("a:1", "[::1]:2"), b"/homeport/", "", "", None, None, None)


def test_prefix_user_and_files_are_read(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key", "password"):
        (tmp_path / name).write_text(f"the {name}\n")
    options = "&".join(f"{name}={tmp_path / name}" for name in ("ca", "cert", "key", "password"))
    assert parse(f"etcd://me@a:1/my/own%20place/?{options}") == EtcdAddress(
        ("a:1",), b"/my/own place/", "me", "the password", b"the ca\n", b"the cert\n", b"the key\n"
    )


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("a:1", "allowed: etcd://"),
        ("etcd://", "allowed: etcd://"),
        ("etcd://a", "allowed: etcd://"),
        ("etcd://a:0", "allowed: etcd://"),
        ("etcd://a:1,", "allowed: etcd://"),
        ("etcd://a:1?timeout=3", "allowed: ca, cert, key, password"),
        ("etcd://a:1?ca=/nowhere/at/all", "No such file"),
        ("etcd://me@a:1", "a user goes with a password file"),
        ("etcd://a:1?cert=/dev/null", "a cert with its key"),
    ],
)
def test_anything_else_is_refused(address: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse(address)
