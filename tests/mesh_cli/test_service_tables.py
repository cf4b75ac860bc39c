"""What a [[service]] table of homeport.toml says of how a service is called: every key, every mistake, every change."""

from __future__ import annotations

import json
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from homeport.mesh.cli import cli
from homeport.mesh.commands.sidecar import Proxy, read_proxy
from homeport.sidecar import (
    Adaptive,
    Balancing,
    Budget,
    Circuit,
    HashOn,
    Hedging,
    Idempotency,
    Outliers,
    Retries,
    ServiceSettings,
    Subset,
    UpstreamTls,
)
from homeport.sidecar.core.settings import settings_of
from tests.mesh_cli.apps import eventually
from tests.mesh_cli.conftest import DEADLINE_S, Processes

ALL = """
[[service]]
name = "orders"
endpoints = ["10.0.0.5:8080", "10.0.0.6:8080"]
tcp = "127.0.0.1:5433"
http = "127.0.0.1:8081"
per_try_s = 3

[service.retries]
retries_max = 1
statuses = [429, 503]
retry_after_s_max = 2.5
budget = {ratio = 0.5, reserve-per-s = 3, window_s = 20}

[service.outliers]
consecutive_5xx = 3
consecutive_gateway = 4
consecutive_connect = 6
interval_s = 5
stdev_factor = 2.5
volume_min = 50
hosts_min = 3
ejection_s = 20
ejection_s_max = 200
jitter_s = 1
share_max = 0.5

[service.hedging]
delay_s = 0.25

[service.circuit]
requests_max = 100
pending_max = 50
connections_max = 200
retries_max = 10

[service.adaptive]
requests_min = 5
requests_max = 90
initial = 40
tolerance = 2
window_s = 2
answers_min = 5

[service.balancing]
policy = "maglev"
zone = "a"
panic = 0.25
subset = {tag = "t", version = "2", zone = "a", meta = {my-key = "v"}, fallback = "none"}
hash_on = {header = "x-user"}

[service.idempotency]
scope = "instance"

[service.tls]
ca = "%(ca)s"
server_name = "orders.example"
cert = "%(cert)s"
key = "%(key)s"
verify = false
"""


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import trustme

    folder = tmp_path_factory.mktemp("pems")
    authority = trustme.CA()
    issued = authority.issue_cert("orders.example")
    authority.cert_pem.write_to_path(str(folder / "ca"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert"))
    issued.private_key_pem.write_to_path(str(folder / "key"))
    return {name: str(folder / name) for name in ("ca", "cert", "key")}


def read(folder: Path, text: str) -> Proxy:
    """What the command makes of a file."""
    file = folder / "homeport.toml"
    file.write_text(text)
    context = cli.make_context("homeport", ["--config", str(file), "sidecar"])
    _, command, rest = cli.resolve_command(context, ["sidecar"])
    assert command is not None
    return read_proxy(**command.make_context("sidecar", rest, parent=context).params)


def expected(pems: dict[str, str]) -> ServiceSettings:
    return ServiceSettings(
        per_try_s=3.0,
        retries=Retries(
            retries_max=1,
            statuses=(429, 503),
            retry_after_s_max=2.5,
            budget=Budget(ratio=0.5, reserve_per_s=3.0, window_s=20.0),
        ),
        hedging=Hedging(delay_s=0.25),
        outliers=Outliers(
            consecutive_5xx=3,
            consecutive_gateway=4,
            consecutive_connect=6,
            interval_s=5.0,
            stdev_factor=2.5,
            volume_min=50,
            hosts_min=3,
            ejection_s=20.0,
            ejection_s_max=200.0,
            jitter_s=1.0,
            share_max=0.5,
        ),
        circuit=Circuit(requests_max=100, pending_max=50, connections_max=200, retries_max=10),
        adaptive=Adaptive(requests_min=5, requests_max=90, initial=40, tolerance=2.0, window_s=2.0, answers_min=5),
        balancing=Balancing(
            policy="maglev",
            zone="a",
            panic=0.25,
            subset=Subset(tag="t", version="2", zone="a", meta={"my-key": "v"}, fallback="none"),
            hash_on=HashOn(header="x-user"),
        ),
        idempotency=Idempotency(scope="instance"),
        tls=UpstreamTls(ca=pems["ca"], server_name="orders.example", cert=pems["cert"], key=pems["key"], verify=False),
    )


def test_every_key_of_a_service_reaches_its_settings(tmp_path: Path, pems: dict[str, str]) -> None:
    options = read(tmp_path, ALL % pems).options
    assert options.services == {"orders": expected(pems)}
    assert options.static == {"orders": ["10.0.0.5:8080", "10.0.0.6:8080"]}
    assert options.tcp == {"orders": "127.0.0.1:5433"}
    assert options.http == {"orders": "127.0.0.1:8081"}
    assert options.settings == ServiceSettings()


def unset(value: Any, default: Any, path: str = "") -> Iterator[str]:
    """The fields that are as they would be anyway."""
    for field in value.__struct_fields__:
        own, usual = getattr(value, field), getattr(default, field)
        if isinstance(own, msgspec.Struct):
            yield from unset(own, own.__class__(tag="-") if isinstance(own, Subset) else _plain(own), f"{path}{field}.")
        elif own == usual:
            yield path + field


def _plain(struct: msgspec.Struct) -> msgspec.Struct:
    return HashOn(source=True) if isinstance(struct, HashOn) else struct.__class__()


# What excludes something above, or may only be what it is.
ELSEWHERE = {"balancing.slow_start_s", "balancing.hash_on.cookie", "balancing.hash_on.source", "idempotency.scope"}


def test_the_example_above_has_every_key_there_is(pems: dict[str, str]) -> None:
    assert set(unset(expected(pems), ServiceSettings())) <= ELSEWHERE


@pytest.mark.parametrize(
    ("said", "balancing"),
    [
        ("slow_start_s = 30", Balancing(slow_start_s=30.0)),
        ('policy = "maglev"\nhash_on = {source = true}', Balancing(policy="maglev", hash_on=HashOn(source=True))),
        ('policy = "maglev"\nhash_on = {cookie = "c"}', Balancing(policy="maglev", hash_on=HashOn(cookie="c"))),
        ('policy = "peak-ewma"', Balancing(policy="peak-ewma")),
    ],
)
def test_what_excludes_other_keys_works_by_itself(tmp_path: Path, said: str, balancing: Balancing) -> None:
    options = read(tmp_path, f'[[service]]\nname = "Orders"\n[service.balancing]\n{said}\n').options
    assert options.services == {"orders": ServiceSettings(balancing=balancing)}


def test_features_are_turned_off_and_on_by_a_word(tmp_path: Path) -> None:
    words = "retries = false\noutliers = false\ncircuit = false\nidempotency = true\ntls = true\n"
    options = read(tmp_path, f'[[service]]\nname = "orders"\n{words}').options
    assert options.services["orders"] == ServiceSettings(
        retries=None, outliers=None, circuit=None, idempotency=Idempotency(), tls=UpstreamTls()
    )
    assert settings_of({"retries": {"budget": False}}).retries == Retries(budget=None)
    assert settings_of({"adaptive": True}).adaptive == Adaptive()
    assert settings_of({"hedging": False}).hedging is None


def test_a_star_stands_for_all_services_without_settings_of_their_own(tmp_path: Path) -> None:
    options = read(tmp_path, '[[service]]\nname = "*"\nper-try-s = 2\n').options
    assert (options.settings, options.services) == (ServiceSettings(per_try_s=2.0), {})


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("", "has a name, and at least one of endpoints, tcp, http"),
        ("endpoint = []", "unknown field `endpoint`"),
        ("endpoints = []", 'endpoints = ["host:port", ...]'),
        ("tcp = 1", 'tcp = "host:port"'),
        ('http = "orders"', "'orders' is not HOST:PORT"),
        ("[service.retries]\nretry_max = 1", "unknown field `retry_max` - at `$.retries`"),
        ("[service.retries]\nretries_max = 100", "retries_max is 100; allowed: 1 to 10"),
        ("[service.retries]\nstatuses = [404]", "statuses has 404; allowed: 429, and 500 to 599"),
        ('retries = "off"', "Expected `object | null`, got `str` - at `$.retries`"),
        ("per_try_s = -1", "per_try_s is -1.0; allowed: 0 to 86400"),
        ('[service.balancing]\npolicy = "random"', "Invalid enum value 'random' - at `$.balancing.policy`"),
        ('[service.idempotency]\nscope = "service"', "no other may; allowed: 'instance'"),
        ('[service.tls]\nca = "/nowhere.pem"', "tls: its files cannot be used"),
        ('[service.tls]\nkey = "/nowhere.pem"', "tls.key needs its certificate"),
        ("per_try_s = 1\nper-try-s = 2", "per_try_s is given twice"),
        ("[service.hedging]\ndelay_s = 0", "hedging.delay_s is 0.0; allowed: 0.001 to 60"),
        ("retries = false\n[service.hedging]\ndelay_s = 1", "a hedge is a retry"),
        ("circuit = false\nadaptive = true", "adaptive moves a limit of the circuit"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_its_reason_and_its_service(tmp_path: Path, said: str, complaint: str) -> None:
    with pytest.raises(click.UsageError) as refused:
        read(tmp_path, f'[[service]]\nname = "orders"\n{said}\n')
    assert complaint in refused.value.format_message()


def test_two_tables_of_settings_for_one_service_are_refused(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="orders has settings twice"):
        read(tmp_path, '[[service]]\nname = "orders"\nper_try_s = 1\n' * 2)


@pytest.mark.parametrize("name", ["settings.toml", "settings.json"])
def test_settings_may_be_a_file_of_their_own(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("per_try_s = 2" if name.endswith("toml") else '{"per_try_s": 2}')
    options = read(tmp_path, f'[sidecar]\nservice = ["orders={file}"]\n').options
    assert options.services == {"orders": ServiceSettings(per_try_s=2.0)}


class Failing(BaseHTTPRequestHandler):
    """Fails every other time; counts; and answers a request for /slow when it is let go."""

    protocol_version = "HTTP/1.1"
    asked = 0
    let_go = threading.Event()

    def do_GET(self) -> None:
        self.__class__.asked += 1
        if self.path == "/slow":
            self.let_go.wait(DEADLINE_S)
        self.send_response(200 if self.path == "/slow" or self.asked % 2 else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_request(self, *args: object) -> None:
        pass


def test_changed_settings_take_effect_and_no_request_is_dropped(homeport: Processes, tmp_path: Path) -> None:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Failing) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoints = json.dumps([f"127.0.0.1:{server.server_port}" for server in servers])
    config = tmp_path / "homeport.toml"

    def write(more: str) -> None:
        beside = config.with_suffix(".new")
        beside.write_text(
            f'registry = "unix:{tmp_path}/none"\n[[service]]\nname = "orders"\nendpoints = {endpoints}\n{more}\n'
            '[sidecar]\noutbound = "127.0.0.1:0"\nadmin = "off"\nstate-dir = "off"\n'
        )
        beside.replace(config)

    write("outliers = false\nretries = false")
    process = homeport.start("--config", str(config), "sidecar")
    proxy = homeport.line_with(process, "homeport: sidecar").split()[3]
    told: list[str] = []
    threading.Thread(target=lambda: told.extend(iter(lambda: homeport.line(process), "")), daemon=True).start()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://{proxy}"}))

    def status(path: str = "/") -> int:
        try:
            with opener.open(f"http://orders{path}", timeout=DEADLINE_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert sorted(status() for _ in range(4)) == [200, 200, 503, 503]
    slow: list[int] = []
    asking = threading.Thread(target=lambda: slow.append(status("/slow")))
    asking.start()
    before = Failing.asked
    eventually(lambda: Failing.asked > before - 1 and asking.is_alive(), "the slow one is under way")
    write("outliers = false\n[service.retries]\nbudget = false")
    eventually(lambda: "was read again" in "".join(told), "the change was read")
    assert {status() for _ in range(10)} == {200}
    write("outliers = false\n[service.retries]\nretry = 3")
    eventually(lambda: "unknown field `retry`" in "".join(told), "the mistake was told")
    assert {status() for _ in range(10)} == {200}
    Failing.let_go.set()
    asking.join(DEADLINE_S)
    assert slow == [200]
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0
    for server in servers:
        server.shutdown()
        server.server_close()
