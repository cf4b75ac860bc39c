"""Power cuts: what a disk may hold if the power goes at some point of its log.

`PowerCut` walks the log once, forwards, keeping what is surely durable apart from what is only written. `draw` then
rolls the dice on the rest, in one of several ways in which real disks and kernels lose writes: all or none of it, the
writes in order up to a torn one, or any of its 512-byte sectors without the others. Sectors that a file grew by and
that were lost hold zeros, or anything at all. Bytes that no write touched stay as they were.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from homeport.mesh.simulation.disk import Operation

SECTOR: Final = 512


class _File:
    """A file's durable bytes, and the writes and truncations (data None) since."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []


class PowerCut:
    """What may be left of the files in `log` if the power goes at a position."""

    def __init__(self, log: Sequence[Operation], rng: random.Random) -> None:
        self._log = log
        self._rng = rng
        self._at = 0
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {}  # durable ones
        self._pending_names: list[tuple[str, int]] = []  # made, or with 0 deleted

    def advance(self, position: int) -> None:
        """Go on to a position: so many operations have happened."""
        for operation in self._log[self._at : position]:
            self._apply(operation)
        self._at = max(self._at, position)

    def _apply(self, operation: Operation) -> None:
        match operation.kind:
            case "create":
                self._files[operation.file] = _File()
                self._pending_names.append((operation.name, operation.file))
            case "delete":
                self._pending_names.append((operation.name, 0))
            case "sync directory":
                _rename(self._names, self._pending_names)
                self._pending_names = []
            case "write":
                self._files[operation.file].pending.append((operation.offset, operation.data))
            case "truncate":
                self._files[operation.file].pending.append((operation.offset, None))
            case "sync":
                file = self._files[operation.file]
                for offset, data in file.pending:
                    _write(file.durable, offset, data)
                file.pending = []
            case "sync failed":
                # The kernel gives up on what it could not write, and believes from now on that it had.
                file = self._files[operation.file]
                file.durable = self._torn(file)
                file.pending = []

    def draw(self) -> dict[str, bytes]:
        """The files, by path, as one such power cut leaves them."""
        names = dict(self._names)
        changes: dict[str, list[tuple[str, int]]] = {}
        for change in self._pending_names:
            changes.setdefault(change[0], []).append(change)
        for of_one in changes.values():
            _rename(names, of_one[: self._rng.randrange(len(of_one) + 1)])
        return {name: bytes(self._torn(self._files[file])) for name, file in names.items()}

    def _torn(self, file: _File) -> bytearray:
        """The durable bytes and some of the others."""
        rng = self._rng
        content = bytearray(file.durable)
        manner = rng.choice(("all", "none", "in order", "in order", "scattered", "scattered"))
        if manner == "none" or not file.pending:
            return content
        last = rng.randrange(len(file.pending)) if manner == "in order" else len(file.pending)
        kept = rng.choice((0.1, 0.5, 0.9))
        garbage = rng.random() < 0.3
        for index, (offset, data) in enumerate(file.pending):
            if manner == "scattered":
                if data is None:
                    if rng.random() < kept:
                        _write(content, offset, None)
                else:
                    self._scatter(content, offset, data, kept, garbage)
            elif index < last:
                _write(content, offset, data)
            elif index == last and data is not None:
                _write(content, offset, data[: rng.randrange(len(data) + 1)])
        return content

    def _scatter(self, content: bytearray, offset: int, data: bytes, kept: float, garbage: bool) -> None:
        """Write some of the sectors that the data falls into; lost ones that lay behind the end hold anything."""
        end = offset + len(data)
        for start in range(offset - offset % SECTOR, end, SECTOR):
            low, high = max(start, offset), min(start + SECTOR, end)
            if self._rng.random() < kept:
                _write(content, low, data[low - offset : high - offset])
            elif garbage and low >= len(content):
                _write(content, low, self._rng.randbytes(high - low))


def _write(content: bytearray, offset: int, data: bytes | None) -> None:
    """Write, or with None truncate or extend to `offset`."""
    if data is None:
        del content[offset:]
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data:
        content[offset : offset + len(data)] = data


def _rename(names: dict[str, int], changes: Sequence[tuple[str, int]]) -> None:
    for name, file in changes:
        if file:
            names[name] = file
        else:
            names.pop(name, None)
