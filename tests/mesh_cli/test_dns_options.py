"""`homeport serve` with DNS: where it listens, under which names, and which options it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.message
import dns.query
import pytest

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.mesh_cli.conftest import Processes

DEADLINE_S = 30


def test_dns_is_served_under_the_domains_that_are_named(homeport: Processes) -> None:
    options = ("--dns", "127.0.0.1:0", "--dns-domain", "homeport,consul", "--dns-node-ttl", "7", "--dns-ttl", "*=3")
    serving = homeport.serve(where=("--memory", *options))
    host, _, port = serving.dns.rpartition(":")
    for domain in ("homeport", "consul"):
        for ask in (dns.query.udp, dns.query.tcp):
            query = dns.message.make_query(domain, "SOA")
            answer = ask(query, host, port=int(port), timeout=DEADLINE_S)
            assert (str(answer.answer[0].name), answer.answer[0].ttl) == (f"{domain}.", 7)


def test_it_is_on_by_default_and_off_turns_it_off(homeport: Processes) -> None:
    assert "[default: 127.0.0.1:8600]" in homeport.run("serve", "--help").stdout.replace("\n", " ")
    assert homeport.serve(where=("--memory", "--dns", "off")).dns == "off"


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (("--dns", "nonsense"), "is not HOST:PORT"),
        (("--dns-domain", "Upper"), "lower-case letters"),
        (("--dns-ttl", "web"), "is not SERVICE=SECONDS"),
        (("--dns-ttl", "w*b=3"), "a beginning and *"),
        (("--dns-node-ttl", "-1"), "0 to 604800 seconds"),
        (("--dns-udp-bytes", "100"), "512 to 65535"),
        (("--dns-recursor", "dns.example"), "allowed: ip"),
    ],
)
def test_what_cannot_be_is_a_usage_error(homeport: Processes, option: tuple[str, str], complaint: str) -> None:
    refused = homeport.run("serve", "--memory", *option)
    assert refused.returncode == 2
    assert complaint in " ".join(refused.stderr.split())
