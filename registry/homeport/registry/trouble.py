"""What is tried again and again is said once when it begins to fail, and once when it goes on."""

from __future__ import annotations

import logging


class Trouble:
    """One thing that is tried for ever.

    Args:
        logger: where it is said: as a warning when it begins, as information when it is over, else for debugging.
        what: the words before the error.
    """

    __slots__ = ("_log", "_times", "_what")

    def __init__(self, logger: logging.Logger, what: str) -> None:
        self._log = logger
        self._what = what
        self._times = 0

    def met(self, error: BaseException) -> None:
        """It failed."""
        self._times += 1
        self._log.log(logging.DEBUG if self._times > 1 else logging.WARNING, "%s: %s", self._what, error)

    def over(self) -> None:
        """It worked."""
        if self._times:
            self._log.info("%s no more, after %d failures", self._what, self._times)
            self._times = 0
