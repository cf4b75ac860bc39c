"""What the benchmark of a cluster reads: etcd's own counters, and what the load says of itself."""

from __future__ import annotations

from pathlib import Path

from benchmarks.contenders.cluster import EtcdTotals, totals
from benchmarks.load.site import Standing, standing

_EXPOSITION = """\
# HELP etcd_debugging_mvcc_put_total Total number of puts seen by this member.
# TYPE etcd_debugging_mvcc_put_total counter
etcd_debugging_mvcc_put_total 12
etcd_mvcc_put_total 12
etcd_mvcc_delete_total 3
etcd_network_client_grpc_received_bytes_total 1.5e+06
etcd_network_client_grpc_sent_bytes_total{kind="a b"} 2
etcd_network_client_grpc_sent_bytes_total{kind="c"} 3
"""


def test_a_counter_is_read_under_any_of_its_names_and_once() -> None:
    assert totals(_EXPOSITION) == EtcdTotals(1.5e6, 5.0, 12.0, 3.0, 0.0)


def test_the_last_whole_line_of_the_load_counts(tmp_path: Path) -> None:
    log = tmp_path / "site.log"
    assert standing([log]) == Standing(0, 0, 0)
    log.write_text('{"started":1,"registered":1,"links":2}\n{"started":5,"registered":4,"links":2}\na warning\n{"star')
    assert standing([log]) == Standing(5, 4, 2)
    assert standing([log, log]) == Standing(10, 8, 4)
