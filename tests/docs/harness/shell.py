"""The terminals of whoever follows a page: commands that end, and commands that go on in a window of their own.

A block of `console` holds commands after `$ ` and what they print; a block of `sh` holds commands alone. Output is
compared loosely: spaces count as one, a line of `...` stands for any lines, `...` in a line for anything.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Final, NamedTuple

from tests.docs.harness.ports import Ports

PATIENCE_S: Final = 60.0  # for a command, and for what a page says will come
INSTALL_S: Final = 400.0  # for pip, which may have to fetch everything
_AGAIN_S: Final = 0.2  # between two looks at what comes soon
_STOP_S: Final = 30.0  # for what a terminal runs, after Ctrl-C


class Wrong(AssertionError):
    """A page says something that is not so."""


class Command(NamedTuple):
    """One command, and the output that the page shows for it: None if it shows none."""

    text: str
    expected: str | None


def commands(source: str, language: str) -> list[Command]:
    """What a block asks for. In `console`, a line that ends with a backslash goes on in the next."""
    if language == "sh":
        return [Command(f"set -euo pipefail\n{source}", None)]
    found: list[Command] = []
    continued = False
    for line in source.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:], None))
        elif not found:
            raise Wrong(f"a console block begins with `$ `, not with {line!r}")
        elif continued:
            found[-1] = Command(f"{found[-1].text}\n{line.removeprefix('> ')}", None)
        else:
            found[-1] = Command(found[-1].text, f"{found[-1].expected or ''}{line}\n")
            continue
        continued = line.endswith("\\")
    return found


def matches(expected: str, output: str) -> bool:
    """Whether the output is what the page shows, as far as it shows it."""
    pattern = ""
    for line in expected.strip().splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            parts = (r"[ \t]+".join(map(re.escape, part.split())) for part in line.split("..."))
            pattern += rf"[ \t]*{'.*'.join(parts)}[ \t]*\n"
    return re.fullmatch(pattern, output.strip() + "\n") is not None


class Shell:
    """Runs commands in one folder."""

    def __init__(self, folder: Path, ports: Ports, environment: dict[str, str]) -> None:
        self.folder = folder
        self._ports = ports
        self._environment = environment
        self._terminals: dict[str, Terminal] = {}

    def run(self, block: list[Command], *, soon: bool = False, patience_s: float = PATIENCE_S) -> None:
        """Run a block to its end; `soon`: as often as it takes until it prints what the page shows."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._run(block, patience_s)
            except Wrong:
                if not soon or time.monotonic() > deadline:
                    raise
                time.sleep(_AGAIN_S)

    def _run(self, block: list[Command], patience_s: float) -> None:
        mark = f"== {os.urandom(8).hex()} "  # stands between the outputs
        script = "".join(
            f"{self._ports.fill(each.text)}\n(status=$?; echo; echo '{mark}'$status; exit $status)\n" for each in block
        )
        process = self._start(script, subprocess.PIPE)
        try:
            output, _ = process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise Wrong(f"not done after {patience_s} s:\n{output}") from None
        said = re.findall(rf"(.*?)\n{re.escape(mark)}(\d+)\n", output, re.DOTALL)
        for number, (command, (printed, status)) in enumerate(zip(block, said, strict=False)):
            asked = number + 1 < len(block) and block[number + 1].text.strip() == "echo $?"
            if status != "0" and not asked:
                raise Wrong(f"$ {command.text}\nended with {status}:\n{printed}")
            shown = self._ports.back(printed)
            if command.expected is not None and not matches(command.expected, shown):
                raise Wrong(f"$ {command.text}\nprinted:\n{shown}\nthe page shows:\n{command.expected}")
        if len(said) < len(block):
            raise Wrong(f"$ {block[len(said)].text}\ndid not get to its end:\n{output}")

    def open(self, name: str, block: list[Command]) -> None:
        """Run a command that goes on, in a terminal of its own, and return when it has printed what the page shows."""
        (command,) = block
        log = self.folder / f".terminal-{name}"
        with log.open("w") as file:
            process = self._start(f"exec {self._ports.fill(command.text)}", file)
        terminal = self._terminals[name] = Terminal(process, log)
        if command.expected is None:
            return
        deadline = time.monotonic() + PATIENCE_S
        while not matches(f"{command.expected}...\n", shown := self._ports.back(terminal.text)):
            if terminal.process.poll() is not None or time.monotonic() > deadline:
                raise Wrong(f"$ {command.text}\nprinted:\n{shown}\nthe page shows:\n{command.expected}")
            time.sleep(_AGAIN_S)

    def interrupt(self, name: str) -> None:
        """Press Ctrl-C in a terminal; what runs there must still run, and end."""
        terminal = self._terminals.pop(name)
        if terminal.process.poll() is not None:
            raise Wrong(f"terminal {name} ended by itself with {terminal.process.returncode}:\n{terminal.text}")
        terminal.stop(signal.SIGINT)

    def ended(self, name: str, status: int) -> None:
        """What ran in a terminal ends by itself, with this status."""
        terminal = self._terminals.pop(name)
        got = terminal.process.wait(PATIENCE_S)
        if got != status:
            raise Wrong(f"terminal {name} ended with {got}, the page says {status}:\n{terminal.text}")

    def close(self) -> str:
        """Close all terminals; return which of them had ended by themselves."""
        terminals, self._terminals = self._terminals, {}
        ended = {name: each for name, each in terminals.items() if each.process.poll() is not None}
        for terminal in terminals.values():
            terminal.stop(signal.SIGTERM)
        return "\n".join(
            f"terminal {name} ended by itself with {terminal.process.returncode}:\n{terminal.text}"
            for name, terminal in ended.items()
        )

    def _start(self, script: str, output: int | IO[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


class Terminal(NamedTuple):
    """A window in which a command runs."""

    process: subprocess.Popen[str]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text()

    def stop(self, how: signal.Signals) -> None:
        """Have the command end, and all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise Wrong(f"it did not end after {how.name}:\n{self.text}") from None
