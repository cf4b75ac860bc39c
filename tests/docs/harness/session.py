"""A Python session: blocks of a page run one after the other in one namespace, `await` and all, on a loop that goes on
between them, so that a registry which an early block starts answers the commands of a later one.

As a program, the session's far end: it takes a JSON line per block and answers with one. It knows nothing but the
standard library, so that it also runs where only Homeport is installed.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Final

BLOCK_S: Final = 60.0  # for one block: what waits longer waits for ever
GOES_ON_S: Final = 1.0  # how long one that does not end is watched


class Session:
    """The near end."""

    def __init__(self, python: Path, folder: Path, environment: dict[str, str]) -> None:
        self._log = folder / ".session"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-W", "error", __file__],
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def run(self, source: str, path: str, line: int, *, goes_on: bool) -> str:
        """Run a block; return what went wrong, or nothing. `goes_on`: it must not end before it is ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([source, path, line, goes_on]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        wrong = json.loads(answer) if answer else "the session has ended"
        return f"{wrong}\n{self._log.read_text()}" if wrong else ""

    def close(self) -> None:
        """End the session, with what its blocks left running."""
        self._process.communicate(timeout=BLOCK_S)


async def _main() -> None:
    blocks, answers = sys.stdin, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what blocks print goes to the log
    names: dict[str, Any] = {"__name__": "page"}
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, blocks.readline):
        source, path, number, goes_on = json.loads(line)
        wrong = "it was to go on, and ended" if goes_on else ""
        limit = asyncio.timeout(GOES_ON_S if goes_on else BLOCK_S)
        try:
            async with limit:
                await _run(source, path, number, names)
        except TimeoutError:
            wrong = "" if goes_on and limit.expired() else f"not done in time\n{traceback.format_exc()}"
        except BaseException:  # noqa: BLE001 - whatever it is, the page is wrong
            wrong = traceback.format_exc()
        answers.write(json.dumps(wrong) + "\n")
        answers.flush()


async def _run(source: str, path: str, line: int, names: dict[str, Any]) -> None:
    tree = ast.increment_lineno(ast.parse(source, path), line)  # the fence is the line before
    code = compile(tree, path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        await result


if __name__ == "__main__":
    asyncio.run(_main())
