"""dnsmasq with the same names as local records: what it answers from its own tables, nothing forwarded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from benchmarks.machine import program_path
from benchmarks.servers import Server, accepts, free_port
from benchmarks.stage import Stage
from homeport.client.core.model import Instance


def missing() -> str:
    """Why it cannot take part, or nothing."""
    return "" if shutil.which("dnsmasq", path=program_path()) else "dnsmasq is not installed"


def serve(stage: Stage, instances: Sequence[Instance]) -> tuple[Server, int]:
    """Start it with an address and an SRV record for each instance; return it with its port."""
    port = free_port()
    lines = ["no-resolv", "no-hosts", "bind-interfaces", "listen-address=127.0.0.1", f"port={port}", "cache-size=0"]
    lines += ["user=", "group="]
    for one in instances:
        name = f"{one.service}.service.homeport"
        lines += [f"host-record={name},{one.address}", f"srv-host={name},{one.id}.node.homeport,{one.port}"]
        lines += [f"host-record={one.id}.node.homeport,{one.address}"]
    config = stage.new_folder("dnsmasq") / "dnsmasq.conf"
    config.write_text("\n".join(lines) + "\n")
    program = shutil.which("dnsmasq", path=program_path())
    assert program is not None, "a missing program does not take part"
    command = [program, "--keep-in-foreground", f"--conf-file={config}", "--pid-file="]
    return stage.server("dnsmasq", command, accepts(port)), port
