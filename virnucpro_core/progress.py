"""Progress as log lines, so that a scheduler's log file can be read too."""

from __future__ import annotations

import logging
import time

SECONDS = 10.0


class Progress:
    """Says every few seconds how much is done, how fast, and how long the rest takes."""

    def __init__(self, stage: str, total: int, unit: str) -> None:
        self._logger = logging.getLogger(f"virnucpro.{stage}")
        self._total, self._unit = total, unit
        self._count = 0
        self._start = self._said = time.monotonic()

    def advance(self, count: int) -> None:
        """Count more units as done."""
        self._count += count
        now = time.monotonic()
        if now - self._said >= SECONDS:
            self._said = now
            rate = self._count / (now - self._start)
            left = (self._total - self._count) / rate
            self._logger.info(
                "%d of %d %s, %.0f a second, %.0f s left",
                self._count,
                self._total,
                self._unit,
                rate,
                left,
            )
