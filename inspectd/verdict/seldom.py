"""A limit on log lines that strangers can cause as often as they like."""

from __future__ import annotations

import time


class Seldom:
    """Lets one line through in `every_s` seconds and counts the others. Belongs to one thread."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._next = 0.0
        self._held_back = 0

    def due(self) -> int | None:
        """How many were held back since the last line, or None: hold this one back."""
        now = time.monotonic()
        if now < self._next:
            self._held_back += 1
            return None
        self._next = now + self._every_s
        held_back, self._held_back = self._held_back, 0
        return held_back
