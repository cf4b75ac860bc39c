"""Real `homeport` processes for the tests, and none left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from click.testing import CliRunner

from homeport.mesh.cli import cli

DEADLINE_S = 30
HOMEPORT = [sys.executable, "-m", "homeport.mesh.cli"]


@dataclass(frozen=True)
class Serving:
    """A registry in a process of its own."""

    http: str
    rpc: str
    dns: str
    data: str  # its directory, or "memory"
    process: subprocess.Popen[str]


@dataclass
class Processes:
    """Starts `homeport ARGS...`; what still runs after the test is killed."""

    registry: str = ""  # where commands look for it, unless they say otherwise
    variables: dict[str, str] = field(default_factory=dict)  # what else their environment holds
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("HOMEPORT_")}
        env["HOMEPORT_STATE_DIR"] = "off"  # no test leaves anything in the home of who runs it
        env["HOMEPORT_SERVE_DNS"] = "off"  # its port is the same for all; who wants it says --dns
        return env | ({"HOMEPORT_REGISTRY": self.registry} if self.registry else {}) | self.variables

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start a command with all its output on one pipe."""
        process = subprocess.Popen(
            [*HOMEPORT, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.env
        )
        self.started.append(process)
        return process

    def line(self, process: subprocess.Popen[str]) -> str:
        """The next line that a process prints; the test's own timeout bounds the wait."""
        assert process.stdout is not None
        return process.stdout.readline()

    def line_with(self, process: subprocess.Popen[str], beginning: str) -> str:
        """The next line that begins so, past whatever was logged before it."""
        passed = []
        while not (line := self.line(process)).startswith(beginning):
            passed.append(line)
            assert line, f"no line begins with {beginning!r}, but: {passed}"
        return line

    def serve(
        self, http: str = "127.0.0.1:0", rpc: str = "127.0.0.1:0", where: Sequence[str] = ("--memory",)
    ) -> Serving:
        """Start a registry, on free ports by default, and return once it answers; commands use it from now on.

        Args:
            where: the options that say where the data is.
        """
        process = self.start("serve", "--http", http, "--rpc", rpc, *where)
        line = self.line_with(process, "homeport: serving")
        found = re.fullmatch(r"homeport: serving  http (\S+)  rpc (\S+)  dns (\S+)  data (.+)\n", line)
        assert found, f"not a ready line: {line!r}"
        self.registry = found[2]
        return Serving(found[1], found[2], found[3], found[4], process)

    def run(self, *args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*HOMEPORT, *args],
            capture_output=True,
            text=True,
            input=stdin,
            timeout=DEADLINE_S,
            env=self.env,
            check=False,
        )

    def quick(self, *args: str, codes: Sequence[int] = (0,)) -> str:
        """Run a client command in this process, for what a test only prepares or looks at, and return its output."""
        result = CliRunner().invoke(cli, list(args), prog_name="homeport", env=self.env)
        assert result.exit_code in codes, result.output
        return result.stdout

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait(DEADLINE_S)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def homeport() -> Iterator[Processes]:
    """The command line, with no registry yet."""
    processes = Processes()
    yield processes
    processes.close()


@pytest.fixture
def serving(homeport: Processes) -> Serving:
    """A registry that answers, and that `homeport` commands use."""
    return homeport.serve()
