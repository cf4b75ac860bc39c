"""What `homeport doctor` looks at: each look returns findings, raises nothing, and takes a few seconds at most."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import socket
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, NamedTuple

from homeport.client import Client, HomeportError
from homeport.client.core.messages import Ping, Stats
from homeport.mesh.one_try import Connection, TryError
from homeport.mesh.token import token

LOOK_S: Final = 3.0  # for anything that answers over the network
FILES_MIN: Final = 4096  # open files: each connection is one, and a sidecar has two per request under way
DISK_BYTES_MIN: Final = 512 * 1024 * 1024  # under which a journal is soon in trouble; SQLite needs room to fold its log
CLOCK_OFF_S: Final = 2.0  # between this machine and the registry's: logs and certificates begin to disagree
LOOP_LATE_US: Final = 250_000  # the registry's tick: a loop that stalls longer extends every lease
_PACKAGES: Final = ("aiohttp", "apsw", "httptools", "msgpack", "msgspec", "uvloop")


class Finding(NamedTuple):
    """One thing that was looked at; `advice` is empty where all is well."""

    verdict: Literal["well", "warning", "wrong"]
    what: str
    found: str
    advice: str = ""


async def examine(registries: Sequence[str], http: str, dns: str, data_dir: Path) -> list[Finding]:
    """Everything, in the order in which a person would look."""
    findings = [_python(), _packages(), _open_files(), *_data(data_dir), await _names()]
    reached = False
    for address in registries:
        looked = await _registry(address)
        reached = reached or looked[0].verdict != "wrong"
        findings += looked
    findings += await _http(http, reached)
    findings.append(await _dns(dns, reached))
    findings.append(_proxy_variables())
    return findings


# --- this machine -----------------------------------------------------------------------------------------------


def _python() -> Finding:
    return Finding("well", "Python", f"{platform.python_version()} on {platform.system()} {platform.release()}")


def _packages() -> Finding:
    found, missing = [f"homeport {version('homeport')}"], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing == ["uvloop"]:
        return Finding(
            "warning", "packages", ", ".join(found), "pip install uvloop: the sidecar is much faster with it"
        )
    if missing:
        return Finding("wrong", "packages", f"missing: {', '.join(missing)}", "pip install --force-reinstall homeport")
    return Finding("well", "packages", ", ".join(found))


def _open_files() -> Finding:
    try:
        import resource
    except ImportError:
        return Finding("well", "open files", "this system sets no limit that could be read")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        raised = f"ulimit -n {min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536}"
        advice = f"{raised} before the start, or LimitNOFILE=65536 in a systemd unit: every connection takes one"
        return Finding("warning", "open files", f"limit {soft} (hard {hard})", advice)
    return Finding("well", "open files", f"limit {soft}")


def _data(directory: Path) -> list[Finding]:
    what = f"data in {directory}"
    if not directory.exists():
        return [Finding("well", what, "not there yet; `homeport serve` makes it")]
    if not directory.is_dir():
        return [Finding("wrong", what, "is no directory", "move it away, or choose another with --data-dir")]
    findings = []
    mode = stat.S_IMODE(directory.stat().st_mode)
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        owner = directory.stat().st_uid
        advice = f"chown it to the user who runs the registry (it belongs to uid {owner}), or choose another"
        findings.append(Finding("wrong", what, "cannot be read and written by this user", advice))
    elif os.name == "posix" and mode & 0o077:
        advice = f"chmod 700 {directory}: the keys in it may be secrets"
        findings.append(Finding("warning", what, f"others of this machine may look into it (mode {mode:o})", advice))
    else:
        findings.append(Finding("well", what, "readable and writable, for this user only"))
    free = shutil.disk_usage(directory).free
    room = f"{free / 1024**3:.1f} GiB free"
    if free < DISK_BYTES_MIN:
        findings.append(Finding("wrong", "disk", room, "make room: without, the registry becomes read-only"))
    else:
        findings.append(Finding("well", "disk", room))
    return findings


async def _names() -> Finding:
    name = socket.gethostname()
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(LOOK_S):
            found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as error:
        advice = f"add {name} to /etc/hosts; it is the node's name, and others may look it up"
        return Finding("warning", "this host's name", f"{name} does not resolve ({type(error).__name__})", advice)
    took_ms = (loop.time() - began) * 1000
    addresses = ", ".join(sorted({str(each[4][0]) for each in found}))
    if took_ms > 1000:
        advice = "name lookups of this machine are slow: see the nameservers in /etc/resolv.conf"
        return Finding("warning", "this host's name", f"{name} is {addresses}, after {took_ms:.0f} ms", advice)
    return Finding("well", "this host's name", f"{name} is {addresses}")


def _proxy_variables() -> Finding:
    proxy = os.environ.get("http_proxy") or os.environ.get("HTTP_PROXY") or ""
    without = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if proxy and "127.0.0.1" not in without and "localhost" not in without:
        advice = "add localhost,127.0.0.1 to NO_PROXY, or requests to this machine go through the proxy too"
        return Finding("warning", "HTTP_PROXY", f"{proxy}, and NO_PROXY does not name this machine", advice)
    return Finding("well", "HTTP_PROXY", f"{proxy or 'not set'}")


# --- the registry -----------------------------------------------------------------------------------------------


async def _registry(address: str) -> list[Finding]:
    what = f"registry at {address}"
    try:
        async with Client(address, name="homeport doctor", token=token()) as client:
            await client.call(Ping(), timeout_s=LOOK_S)
            took_ms = await _timed(lambda: client.call(Ping(), timeout_s=LOOK_S))
            report = await client.call(Stats(), timeout_s=LOOK_S)
            welcome = client.welcome
    except HomeportError as error:
        return [Finding("wrong", what, str(error), await _why_not(address))]
    numbers = report.numbers
    ours, theirs = f"homeport/{version('homeport')}", welcome.server if welcome is not None else ""
    found = f"{theirs}, answers in {took_ms:.1f} ms, {numbers.get('instances', 0)} instances"
    findings = [Finding("well", what, found)]
    if theirs and theirs != ours:
        advice = "releases talk to their neighbours; further apart, update one of the two"
        findings.append(Finding("warning", "versions", f"the registry is {theirs}, this is {ours}", advice))
    if numbers.get("read_only"):
        advice = "see /readyz of its HTTP API for the reason: a full disk, or a lost quorum"
        findings.append(Finding("wrong", "writes", "the registry is read-only", advice))
    late_us = numbers.get("loop_late_max_us", 0)
    if late_us > LOOP_LATE_US:
        advice = "something held it up: a suspended machine, no CPU time left (cgroup limits), or swapping"
        findings.append(Finding("warning", "its event loop", f"once stalled for {late_us / 1000:.0f} ms", advice))
    return findings


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await work()
    return (loop.time() - began) * 1000


async def _why_not(address: str) -> str:
    """What to do about a registry that does not answer."""
    start = "start one (`homeport serve`), or say where it is with --registry or HOMEPORT_REGISTRY"
    if address.startswith("unix:"):
        return _why_not_socket(address.removeprefix("unix:"), start)
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(LOOK_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except ConnectionRefusedError:
        return f"nobody listens there: {start}"
    except socket.gaierror:
        return f"the name {host!r} does not resolve: see /etc/hosts and /etc/resolv.conf"
    except (OSError, TimeoutError):
        return "no answer at all: a firewall, another network, or a stopped process"
    except ValueError:
        return "an address is HOST:PORT or unix:/PATH"
    writer.close()
    return "somebody else listens on that port, or speaks TLS: see `ss -ltnp`"


def _why_not_socket(path: str, start: str) -> str:
    if not os.path.exists(path):
        return f"there is no socket {path}: {start}"
    if not os.access(path, os.R_OK | os.W_OK):
        return f"this user may not use {path}: chmod or chown it"
    return f"nobody listens on {path}, it was left behind: {start}"


# --- its other fronts -------------------------------------------------------------------------------------------


async def _http(address: str, reached: bool) -> list[Finding]:
    what = f"HTTP API at {address}"
    connection = Connection(address)
    before = time.time()
    try:
        answer = await connection.request("GET", "/readyz", host=address, timeout_s=LOOK_S)
    except TryError as error:
        if not reached:
            return [Finding("warning", what, "does not answer either", "it is the registry's: see above")]
        return [
            Finding("warning", what, f"does not answer ({error})", "off (`--http off`), or elsewhere: --http HOST:PORT")
        ]
    finally:
        connection.close()
    findings = []
    if answer.status == 200:
        findings.append(Finding("well", what, "ready"))
    else:
        said = answer.body.decode(errors="replace").strip()[:200]
        findings.append(Finding("wrong", what, f"not ready: {said}", "it says why"))
    return findings + clock(answer.headers.get("date", ""), before, time.time())


def clock(date: str, before: float, after: float) -> list[Finding]:
    """What a `date` of whole seconds says, of an answer asked for at `before` and there at `after` by our clock (s)."""
    from email.utils import parsedate_to_datetime

    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return []
    off_s = theirs - min(max(theirs, before), after)  # a slow answer is no wrong clock
    if abs(off_s) > CLOCK_OFF_S:
        advice = "let both machines follow the time (timedatectl set-ntp true); leases do not depend on it, logs do"
        return [Finding("warning", "clocks", f"the registry's is {off_s:+.0f} s off this one's", advice)]
    return [Finding("well", "clocks", "the registry's and this one agree")]


async def _dns(address: str, reached: bool) -> Finding:
    what = f"DNS at {address}"
    import dns.asyncquery
    import dns.exception
    import dns.message

    host, _, port = address.rpartition(":")
    question = dns.message.make_query("homeport.", "SOA")
    try:
        answer = await dns.asyncquery.udp(question, host.strip("[]"), timeout=LOOK_S, port=int(port))
    except (OSError, ValueError, dns.exception.DNSException) as error:
        if not reached:
            return Finding("warning", what, "does not answer either", "it is the registry's: see above")
        return Finding(
            "warning", what, f"does not answer ({type(error).__name__})", "off, or elsewhere: --dns HOST:PORT"
        )
    return Finding("well", what, f"answers ({dns.rcode.to_text(answer.rcode())})")
