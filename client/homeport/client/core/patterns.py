"""Regular expressions that strangers wrote: RE2's, whose time grows with the text alone, whatever the expression.

Python's own backtrack: one short expression keeps a process busy for hours. RE2 is also what Consul's users write, for
Go's regular expressions are its dialect (no look-around, no back references).
"""

from __future__ import annotations

from typing import Final

import re2  # type: ignore[import-untyped]  # has no types of its own

from homeport.client.core.errors import InvalidArgument

PATTERN_CHARS_MAX: Final = 1024  # of one expression; nobody writes a longer one by hand
_MEMORY_BYTES_MAX: Final = 1 << 20  # of one compiled; `a{1000}{1000}` and its like are refused


class Pattern:
    """One compiled expression.

    Raises:
        InvalidArgument: it is none, too long, or needs too much memory; the message says which.
    """

    __slots__ = ("_compiled",)

    def __init__(self, text: str) -> None:
        if len(text) > PATTERN_CHARS_MAX:
            raise InvalidArgument(f"a regular expression of {len(text)} characters; allowed: {PATTERN_CHARS_MAX}")
        options = re2.Options()
        options.max_mem = _MEMORY_BYTES_MAX
        options.log_errors = False
        try:
            self._compiled = re2.compile(text, options)
        except re2.error as error:
            reason = error.args[0]
            said = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
            raise InvalidArgument(f"no regular expression: {said}") from None
        except UnicodeEncodeError:
            raise InvalidArgument("no regular expression: it is not valid UTF-8 text") from None

    @property
    def groups_count(self) -> int:
        """How many groups it has."""
        return int(self._compiled.groups)

    def matches(self, text: str) -> bool:
        """Whether it matches all of `text`."""
        return self._compiled.fullmatch(text) is not None

    def replaced(self, replacement: str, text: str) -> str:
        """`text` with what matches replaced; `\\1` to `\\9` in `replacement` are groups."""
        return str(self._compiled.sub(replacement, text))

    def found_in(self, text: str) -> bool:
        """Whether it matches anywhere in `text`."""
        return self._compiled.search(text) is not None

    def groups(self, text: str) -> tuple[str, ...] | None:
        """What it matched in `text`, then its groups, "" for those that took no part; None if it does not match."""
        found = self._compiled.search(text)
        return None if found is None else (found[0], *(group or "" for group in found.groups()))
