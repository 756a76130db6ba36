"""How old a message is, when only two clocks that do not know each other can tell."""

from __future__ import annotations

import math
from datetime import datetime

WINDOW_S = 5.0


class Transit:
    """The age of messages, told by the fastest one of the last 5 to 10 s.

    A message that waited in a buffer (this process was stopped, the network stood still) looks new when it is
    read. But it took longer than others: arrival (this process's monotonic clock) minus `published_at` (the
    daemon's wall clock) is the time on the way plus a constant, and the smallest such difference is nearly the
    constant. When the daemon's clock is set back, everything looks old until the window is over; that is the safe
    side. When it is set forward, the next message tells.
    """

    def __init__(self) -> None:
        self._since = -math.inf
        self._current = self._previous = math.inf

    def heard(self, published: float, now: float) -> None:
        """Take note of a live message: `published` in Unix seconds, `now` monotonic seconds."""
        if now - self._since >= WINDOW_S:
            # After a silence longer than the window the last minimum is still the best there is.
            self._previous = self._current
            self._current = math.inf
            self._since = now
        self._current = min(self._current, now - published)

    def age_s(self, published: float, now: float) -> float:
        """Seconds since something was published, never negative; infinite before the first message."""
        fastest = min(self._current, self._previous)
        return math.inf if fastest == math.inf else max(0.0, now - published - fastest)


def unix_s(timestamp: str) -> float:
    """Unix seconds of a message's RFC 3339 time.

    Raises:
        ValueError: no such time.
    """
    return datetime.fromisoformat(timestamp).timestamp()
