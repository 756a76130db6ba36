"""So many a second, and some of them for what matters most."""

from __future__ import annotations


class Budget:
    """`per_s` in the long run and at once; a half of that is left for what is urgent."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._most = self._left = max(1.0, per_s)
        self._reserve = (self._most - 1) / 2
        self._at = 0.0

    def take(self, now: float, *, urgent: bool) -> bool:
        """One of it at `now`, monotonic seconds; False when it is used up."""
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < (1.0 if urgent else 1.0 + self._reserve):
            return False
        self._left -= 1.0
        return True
