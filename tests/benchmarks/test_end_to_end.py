"""One benchmark, really run, small: real servers, real load, the report in its file."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.contenders import etcd, homeport, proxies
from benchmarks.load import driver, protobuf
from benchmarks.load.plan import ClosedLoop, Crowd, FanOut, GrpcCalls
from benchmarks.servers import MeasurementError
from benchmarks.stage import Stage

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")


def test_a_quick_run_prints_a_table_and_leaves_its_report(root: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "fanout", "--quick", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--json", str(results), "--work-dir", str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = report.decode(results.read_bytes())
    assert written.quick
    assert written.machine.versions["homeport"]
    (case,) = written.cases
    ours = case.rows[0]
    assert (ours.name, case.rounds) == ("homeport", 1)
    assert ours.figures["last_delivery"].spread.median > 0
    assert ours.figures["server_cpu"].spread.median > 0
    others = {row.name for row in case.rows[1:]} | {left.name for left in case.skipped}
    assert others == {"etcd"}, "a peer takes part, or is skipped aloud"
    assert "fanout: how long" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"], "data and logs are gone after a success"


@pytest.mark.parametrize("blocked", [True, False])
def test_a_crowd_of_clients_is_answered_whether_it_waits_or_asks(tmp_path: Path, blocked: bool) -> None:
    with Stage("crowd", work_dir=tmp_path) as stage:
        registry = homeport.serve(stage)
        with registry.server:
            plan = Crowd(port=registry.http_port, clients=40, rounds=2, blocked=blocked)
            turn = driver.crowd(plan, stage.generators, [registry.server.pid])
            assert 0 < turn.figures["last_delivery"] <= turn.figures["slowest_put"]


@pytest.mark.peers
def test_wrk_ends_after_part_of_a_second_and_says_what_it_did(tmp_path: Path) -> None:
    if driver.wrk_missing():
        pytest.skip(driver.wrk_missing())
    with Stage("wrk", work_dir=tmp_path) as stage:
        server, (port,) = proxies.body_sink(stage, 1)
        with server:
            begun = time.monotonic()
            turn = driver.wrk(port, ["/"], cores=stage.cores, servers=[server.pid], connections=2, duration_s=0.3)
            assert time.monotonic() - begun < 2, "it counts whole seconds, of which it was told two"
    assert turn.figures["rate"] > 0
    assert turn.figures["server_cpu"] > 0


@pytest.mark.peers
def test_etcd_did_what_the_generator_counted(tmp_path: Path) -> None:
    if etcd.missing() or not shutil.which("etcdctl"):
        pytest.skip("etcd and etcdctl are not installed")
    with Stage("etcd", work_dir=tmp_path) as stage:
        running = etcd.serve(stage, stage.new_folder("etcd"))
        with running.server:
            etcd.call(stage, running, protobuf.PUT, [protobuf.put_request(b"k/%04d" % n, b"v") for n in range(500)])
            counted = subprocess.run(
                ["etcdctl", f"--endpoints=127.0.0.1:{running.port}", "get", "k/", "--prefix", "--keys-only"],
                env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
                capture_output=True,
                text=True,
                check=True,
            )
            assert len(counted.stdout.split()) == 500
            grants = [protobuf.lease_grant_request(lease, 60) for lease in range(1, 11)]
            etcd.call(stage, running, protobuf.LEASE_GRANT, grants)
            renewals = [protobuf.lease_keep_alive_request(lease) for lease in range(1, 11)]
            calls = GrpcCalls(protobuf.LEASE_KEEP_ALIVE, renewals, streaming=True)
            plan = ClosedLoop(port=running.port, connections=2, depth=4, calls=calls, operations_max=200)
            assert driver.closed_loop(plan, stage.generators, [running.server.pid]).figures["rate"] > 0
            watched = FanOut(port=running.port, system="grpc", connections=2, watches=300, puts=2)
            assert driver.fan_out(watched, stage.generators, [running.server.pid]).figures["last_delivery"] > 0


@pytest.mark.peers
def test_a_call_that_etcd_refuses_is_no_measurement(tmp_path: Path) -> None:
    if etcd.missing():
        pytest.skip("etcd is not installed")
    with Stage("etcd", work_dir=tmp_path) as stage:
        running = etcd.serve(stage, stage.new_folder("etcd"))
        with running.server, pytest.raises(MeasurementError, match="2 of 2 operations failed"):
            etcd.call(stage, running, "/etcdserverpb.KV/Nonsense", [b"", b""])
