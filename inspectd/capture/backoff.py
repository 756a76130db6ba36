"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Exponential delays with jitter: `first_s`, doubled at each failure up to `limit_s`.

    Each delay is drawn evenly from its upper half, so that cameras that were lost together (a switch
    that restarted) do not come back in step, while none retries at once.
    """

    def __init__(
        self, first_s: float, limit_s: float, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._first_s = first_s
        self._limit_s = limit_s
        self._uniform = uniform
        self._ceiling_s = first_s

    def next_s(self) -> float:
        """Seconds to wait before the next attempt; the one after that waits longer."""
        ceiling = self._ceiling_s
        self._ceiling_s = min(self._limit_s, ceiling * 2)
        return self._uniform(ceiling / 2, ceiling)

    def reset(self) -> None:
        """Things went well for a while: start from `first_s` again."""
        self._ceiling_s = self._first_s
