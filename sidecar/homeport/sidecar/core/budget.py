"""A retry budget: requests deposit, retries withdraw, and what is older than the window is forgotten.

A fixed number of retries per request multiplies an overload by that number exactly when everything fails. A budget
lets single failures be retried freely and a general failure hardly at all: at most `ratio` retries per request, plus
a reserve for services with little traffic. Source: Finagle's `RetryBudget` over its leaky token bucket.

Strategy: the window is ten slices. The data path only adds 1 to `deposits`; `sweep` puts them into the slice of the
moment and empties slices that are too old, withdrawals with them. Amounts are in units of one withdrawal.
"""

from __future__ import annotations

from typing import Final

from homeport.sidecar.core.settings import Budget

SLICES: Final = 10  # as Finagle: a window's edge moves in steps of a tenth


class RetryBudget:
    """The balance of one service."""

    __slots__ = ("_at", "_ratio", "_reserve", "_slice_s", "_slices", "_sum", "deposits", "exhausted")

    def __init__(self, settings: Budget) -> None:
        self.deposits = 0  # requests since the last sweep
        self.exhausted = 0  # retries that were not made for want of balance
        self._ratio = settings.ratio
        self._reserve = settings.reserve_per_s * settings.window_s
        self._slice_s = settings.window_s / SLICES
        self._slices = [0.0] * SLICES
        self._sum = 0.0
        self._at = 0  # the running number of the slice of the moment

    def sweep(self, now: float) -> None:
        """Account for what came since the last sweep."""
        at = int(now / self._slice_s)
        if at > self._at:
            for number in range(self._at + 1, min(at, self._at + SLICES) + 1):
                self._slices[number % SLICES] = 0.0
            self._at = at
            self._sum = sum(self._slices)  # anew, so that rounding does not add up
        if self.deposits:
            self._add(self.deposits * self._ratio)
            self.deposits = 0

    def _add(self, amount: float) -> None:
        self._slices[self._at % SLICES] += amount
        self._sum += amount

    def balance(self, now: float) -> float:
        """How many retries could be paid for now."""
        self.sweep(now)
        return self._reserve + self._sum

    def affords(self, now: float) -> bool:
        """Whether one more retry can be paid for; `withdraw` pays."""
        if self.balance(now) >= 1.0 - 1e-9:  # 5 x 0.2 is not quite 1
            return True
        self.exhausted += 1
        return False

    def withdraw(self, now: float) -> None:
        self.sweep(now)
        self._add(-1.0)
