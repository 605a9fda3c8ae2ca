"""Progress as log lines, so that a scheduler's log file can be read too."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("virnucpro.embed")

SECONDS = 10.0


class Progress:
    """Says every few seconds how much is done, how fast, and how long the rest takes."""

    def __init__(self, total: int) -> None:
        self._total, self._count = total, 0
        self._start = self._said = time.monotonic()

    def advance(self, count: int) -> None:
        """Count more units as done."""
        self._count += count
        now = time.monotonic()
        if now - self._said >= SECONDS:
            self._said = now
            rate = self._count / (now - self._start)
            left = (self._total - self._count) / rate
            said = "%d of %d frames, %.0f a second, %.0f s left"
            logger.info(said, self._count, self._total, rate, left)
