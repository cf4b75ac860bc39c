"""`homeport kv export` and `homeport kv import`: keys and values out of a registry and into one, as JSON lines.

An export is pages at one revision. An import reads as fast as it writes, keeps a bounded number of writes under way,
all on one connection and so in the order of the lines, and begins nothing after the first line that is wrong.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Callable
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import Any, Final, Protocol

import click
import msgspec

from homeport.client import CasFailed, Client, HomeportError, InvalidArgument, NotFound
from homeport.client.core.messages import KvList, KvPage
from homeport.mesh.commands.json_lines import Line, plain, read_lines
from homeport.mesh.commands.new_file import NewFile
from homeport.mesh.commands.options import json_option, registry_option
from homeport.mesh.commands.output import print_json
from homeport.mesh.commands.progress import progress
from homeport.mesh.commands.running import ExitCode, ask

_UNDER_WAY_MAX: Final = 64  # writes: enough for one sync of the journal to serve many, few to be in doubt about


@click.command("export")
@click.argument("prefix", default="")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write there, not to standard output.")
@click.option("--force", is_flag=True, help="Replace FILE if there is one.")
@registry_option
def export(prefix: str, output: Path | None, force: bool, registry: str) -> None:
    """Write the keys that start with PREFIX (all, if it is left out) as JSON lines, as of one revision.

    Users' keys and values, as `kv import` takes them; `homeport backup` copies everything else too. FILE appears only
    when it is whole.
    """
    if force and output is None:
        raise click.UsageError("--force goes with --output.")

    async def question(client: Client) -> int:
        with (
            NewFile(output, force=force) if output else nullcontext(sys.stdout.buffer) as sink,
            progress("exporting", None, "keys") as show,
        ):
            await _export(client, prefix.encode(errors="surrogateescape"), sink, show)
            if isinstance(sink, NewFile):
                await asyncio.to_thread(sink.finish)
            else:
                sink.flush()
        return ExitCode.DONE

    ask(registry, question)


class _Sink(Protocol):
    def write(self, data: bytes, /) -> Any: ...


async def _export(client: Client, prefix: bytes, sink: _Sink, show: Callable[[int], None]) -> None:
    store_id, encoder, done = client.store_id, msgspec.json.Encoder(), 0
    page, after = KvPage(0, (), more=True), None
    while page.more:
        page = await client.call(KvList(prefix=prefix, after=after, revision=page.revision))
        if client.store_id != store_id:  # a revision means nothing in another history
            raise NotFound(f"the registry holds another history since key {done}: begin anew", store_id=client.store_id)
        sink.write(encoder.encode_lines([plain(entry) for entry in page.entries]))
        done += len(page.entries)
        after = page.entries[-1].key if page.entries else after
        show(done)


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--keep-existing", is_flag=True, help="Only create: keys that are there already stay as they are.")
@registry_option
@json_option
def import_(file: Path, keep_existing: bool, registry: str, as_json: bool) -> None:
    """Write the keys of FILE (- is standard input), JSON lines as `kv export` writes them.

    A line has "key" or "key_base64", "value" or "value_base64"; what else it has is not looked at. At the first line
    that is wrong, or that the registry refuses, it stops and says what was written; running it again does no harm.
    """

    async def question(client: Client) -> int:
        writes = await _import(client, file, 0 if keep_existing else None)
        if as_json:
            print_json({"written": writes.written, "kept": writes.kept})
        else:
            click.echo(writes.said())
        return ExitCode.DONE

    ask(registry, question)


class _Writes:
    """The writes of one import: some under way, the others counted."""

    def __init__(self, client: Client, cas: int | None) -> None:
        self._client = client
        self._cas = cas
        self._limits = client.welcome.limits if client.welcome is not None else {}
        self._room = asyncio.Semaphore(_UNDER_WAY_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self.written = 0
        self.kept = 0
        self.begun_line = 0
        self.failed: dict[int, HomeportError] = {}  # by line

    async def begin(self, line: Line) -> None:
        """Begin a write once there is room.

        Raises:
            InvalidArgument: the registry's limits forbid it, so it was not begun.
        """
        self._check("key", line.number, len(line.key))
        self._check("value", line.number, len(line.value))
        await self._room.acquire()
        self.begun_line = line.number
        task = asyncio.create_task(self._put(line))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _check(self, what: str, number: int, size: int) -> None:
        allowed = self._limits.get(f"{what}_bytes", size)
        if size > allowed:
            raise InvalidArgument(f"line {number}: the {what} has {size} bytes; allowed: {allowed}", line=number)

    async def _put(self, line: Line) -> None:
        try:
            await self._client.kv.put(line.key, line.value, cas=self._cas)
            self.written += 1
        except CasFailed:
            self.kept += 1
        except HomeportError as error:
            self.failed[line.number] = error
        finally:
            self._room.release()

    async def settle(self) -> None:
        """Wait for the writes under way."""
        await asyncio.gather(*self._tasks)

    def said(self) -> str:
        """What was done, in words."""
        kept = f", {_keys(self.kept)} kept" if self.kept else ""
        return f"{_keys(self.written)} written{kept}"


def _keys(count: int) -> str:
    return "1 key" if count == 1 else f"{count} keys"


async def _import(client: Client, file: Path, cas: int | None) -> _Writes:
    """Write every line.

    Raises:
        HomeportError: a line was wrong or refused; the message says which, and what was written all the same.
    """
    descriptor = os.dup(sys.stdin.fileno()) if str(file) == "-" else os.open(file, os.O_RDONLY)
    about = os.fstat(descriptor)
    size = about.st_size if stat.S_ISREG(about.st_mode) else None
    writes = _Writes(client, cas)
    wrong: HomeportError | None = None
    with progress("importing", size, "bytes") as show:
        try:
            async with aclosing(read_lines(descriptor)) as lines:
                async for line in lines:
                    if writes.failed:
                        break
                    await writes.begin(line)
                    show(line.read)
        except InvalidArgument as error:
            wrong = error
        await writes.settle()
    if writes.failed:
        number, refusal = min(writes.failed.items(), key=lambda failed: failed[0])
        after = f"; of lines {number + 1} to {writes.begun_line} some were" if writes.begun_line > number else ""
        raise type(refusal)(f"line {number}: {refusal.message}; {writes.said()}{after}", **refusal.details)
    if wrong is not None:
        raise type(wrong)(f"{wrong.message}; nothing from there on; {writes.said()}", **wrong.details)
    return writes
