"""Proxies of others, each with one worker, kept-alive upstream connections and no access log; and nginx as upstream."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.machine import program_path
from benchmarks.servers import Server, accepts, answers, free_port
from benchmarks.stage import Stage

LARGE_BYTES: Final = 64 * 1024
HUGE_BYTES: Final = 1024 * 1024
SMALL_BODY: Final = "a small answer of some hundred bytes, as an API would give it " * 2
_REQUESTS: Final = 1_000_000_000  # per connection: none is closed for having served long
_IDLE: Final = 64  # idle upstream connections that a worker keeps: twice what is used


# Starts a proxy in front of upstream ports and returns it with its own port.
Start = Callable[[Stage, Sequence[int]], tuple[Server, int]]


def missing(program: str) -> str:
    """Why a program cannot take part, or nothing."""
    return "" if shutil.which(program, path=program_path()) else f"{program} is not installed"


def _program(name: str) -> str:
    found = shutil.which(name, path=program_path())
    assert found is not None, "a missing program does not take part"
    return found


def upstream(stage: Stage, endpoints: int) -> tuple[Server, list[int]]:
    """Start the nginx that answers `/` with a small body `/large` with 64 KiB, `/huge` with 1 MiB, on so many ports."""
    ports = [free_port() for _ in range(endpoints)]
    folder = stage.new_folder("upstream")
    (folder / "large").write_bytes(b"x" * LARGE_BYTES)
    (folder / "huge").write_bytes(b"x" * HUGE_BYTES)
    listens = " ".join(f"listen 127.0.0.1:{port};" for port in ports)
    http = f"""
        sendfile on;
        server {{
            {listens}
            location / {{ default_type text/plain; return 200 "{SMALL_BODY}"; }}
            location = /large {{ root {folder}; default_type text/plain; }}
            location = /huge {{ root {folder}; default_type text/plain; }}
        }}
    """
    return _nginx(stage, "upstream", folder, http, ports[-1], stage.cores.upstream), ports


def body_sink(stage: Stage, endpoints: int) -> tuple[Server, list[int]]:
    """Start the upstream that reads bodies, on so many ports."""
    ports = [free_port() for _ in range(endpoints)]
    command = [sys.executable, "-m", "benchmarks.contenders.body_sink", *map(str, ports)]
    return stage.server("sink", command, accepts(ports[-1]), stage.cores.upstream), ports


def nginx(stage: Stage, upstreams: Sequence[int]) -> tuple[Server, int]:
    """Start nginx as a reverse proxy, round robin."""
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{each};" for each in upstreams)
    http = f"""
        upstream orders {{ {servers} keepalive {_IDLE}; keepalive_requests {_REQUESTS}; }}
        server {{
            listen 127.0.0.1:{port};
            location / {{
                proxy_pass http://orders;
                proxy_http_version 1.1;
                proxy_set_header Connection "";
                client_max_body_size 2m;
                client_body_buffer_size 2m;
                proxy_buffers 16 16k;  # a large answer stays in memory
                proxy_max_temp_file_size 0;
                proxy_set_header Host $host;
                proxy_set_header X-Forwarded-For $remote_addr;
            }}
        }}
    """
    return _nginx(stage, "nginx", stage.new_folder("nginx"), http, port, stage.cores.server), port


def _nginx(stage: Stage, name: str, folder: Path, http: str, port: int, cores: frozenset[int]) -> Server:
    user = ""
    if os.geteuid() == 0:  # else nginx gives its worker another user's rights, who could not read our folder
        user = f"user {pwd.getpwuid(os.geteuid()).pw_name} {grp.getgrgid(os.getegid()).gr_name};"
    config = folder / "nginx.conf"
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"""
        {user}
        daemon off;
        worker_processes 1;
        pid {folder}/nginx.pid;
        error_log stderr;
        events {{ worker_connections 4096; }}
        http {{
            access_log off;
            tcp_nodelay on;
            keepalive_requests {_REQUESTS};
            {temporary}
            {http}
        }}
        """
    )
    command = [_program("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(config)]
    return stage.server(name, command, accepts(port), cores)


def haproxy(stage: Stage, upstreams: Sequence[int]) -> tuple[Server, int]:
    """Start HAProxy with one thread, least connections, connections reused."""
    return _haproxy(stage, upstreams, "", "")


def haproxy_checked(stage: Stage, upstreams: Sequence[int]) -> tuple[Server, int]:
    """The same with a health check each second, and retries of all that may be repeated."""
    backend = """
    option httpchk GET /
    timeout check 500ms
    option redispatch 1
    retries 3
    retry-on all-retryable-errors"""
    return _haproxy(stage, upstreams, backend, "check inter 1s fall 2 rise 1")


def _haproxy(stage: Stage, upstreams: Sequence[int], backend: str, server: str) -> tuple[Server, int]:
    port = free_port()
    servers = "\n".join(f"    server s{at} 127.0.0.1:{each} {server}" for at, each in enumerate(upstreams))
    config = stage.new_folder("haproxy") / "haproxy.cfg"
    config.write_text(
        f"""
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    option forwardfor
    option http-keep-alive
    http-reuse always
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend in
    bind 127.0.0.1:{port}
    default_backend orders
backend orders
    balance leastconn{backend}
{servers}
"""
    )
    return stage.server("haproxy", [_program("haproxy"), "-db", "-f", str(config)], accepts(port)), port


def envoy(stage: Stage, upstreams: Sequence[int]) -> tuple[Server, int]:
    """Start Envoy with one worker, least request of two choices, no access log."""
    return _envoy(stage, upstreams, {}, {})


def envoy_checked(stage: Stage, upstreams: Sequence[int]) -> tuple[Server, int]:
    """The same with a health check each second, outlier detection, and retries on other hosts."""
    check = {
        "timeout": "0.5s",
        "interval": "1s",
        "no_traffic_interval": "1s",  # else the second check of one that has just started comes after a minute
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"path": "/"},
    }
    elsewhere = "envoy.retry_host_predicates.previous_hosts"
    hosts = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    retry = {
        "retry_on": "connect-failure,refused-stream,reset,5xx",
        "num_retries": 2,
        "retry_host_predicate": [{"name": elsewhere, "typed_config": {"@type": hosts}}],
        "host_selection_retry_max_attempts": 5,
    }
    cluster: dict[str, object] = {
        "health_checks": [check],
        "outlier_detection": {},
        "circuit_breakers": {"thresholds": [{"max_retries": 1000}]},  # by default 3 at once, which fails hundreds
    }
    return _envoy(stage, upstreams, cluster, {"timeout": "60s", "retry_policy": retry})


def _envoy(
    stage: Stage, upstreams: Sequence[int], cluster: dict[str, object], action: dict[str, object]
) -> tuple[Server, int]:
    port = free_port()
    to_orders = {"cluster": "orders", **action}
    route = {
        "name": "orders",
        "virtual_hosts": [
            {
                "name": "orders",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": to_orders}],
            }
        ],
    }
    types = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "HTTP1",
        "use_remote_address": True,
        "route_config": route,
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{types}.http.router.v3.Router", "suppress_envoy_headers": True},
            }
        ],
    }
    config = {
        "static_resources": {
            "listeners": [
                {
                    "name": "in",
                    "address": _socket_address(port),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "orders",
                    "type": "STATIC",
                    "connect_timeout": "5s",
                    "lb_policy": "LEAST_REQUEST",
                    **cluster,
                    "load_assignment": {
                        "cluster_name": "orders",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": _socket_address(each)}} for each in upstreams]}
                        ],
                    },
                }
            ],
        }
    }
    path = stage.new_folder("envoy") / "envoy.json"
    path.write_text(json.dumps(config))
    command = [
        _program("envoy"),
        "-c",
        str(path),
        "--concurrency",
        "1",
        "--log-level",
        "warning",
        "--disable-hot-restart",
    ]
    return stage.server("envoy", command, answers(f"http://127.0.0.1:{port}/")), port


def caddy(stage: Stage, upstreams: Sequence[int]) -> tuple[Server, int]:
    """Start Caddy, least connections; its Go runtime finds out itself that it has one core."""
    port, folder = free_port(), stage.new_folder("caddy")
    servers = " ".join(f"127.0.0.1:{each}" for each in upstreams)
    config = folder / "Caddyfile"
    config.write_text(
        f"""
{{
    admin off
    auto_https off
    storage file_system {folder}
    log {{
        level ERROR
    }}
}}
http://127.0.0.1:{port}, http://orders:{port} {{
    bind 127.0.0.1
    reverse_proxy {servers} {{
        lb_policy least_conn
        transport http {{
            keepalive_idle_conns_per_host {_IDLE}
        }}
    }}
}}
"""
    )
    command = [_program("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
    return stage.server("caddy", command, accepts(port)), port


def _socket_address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def aiohttp(stage: Stage, upstreams: Sequence[int]) -> tuple[Server, int]:
    """Start the plain aiohttp proxy."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.contenders.aiohttp_proxy", "--listen", str(port), "--upstream"]
    command += [f"127.0.0.1:{each}" for each in upstreams]
    return stage.server("aiohttp", command, accepts(port)), port
