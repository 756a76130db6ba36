"""Frames arrive, but must not be judged: when that is a fault, when to reconnect, and what to log."""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import Final

from inspectd.errors import CaptureError
from inspectd.verdict.schema import NoResultReason

FAULT_AFTER_S: Final = 1.0
"""Nothing admitted for so long is a fault; also the least time between two such faults."""
RECONNECT_AFTER_S: Final = 10.0
"""A new connection has no backlog and starts with a key frame, so it helps against stale and corrupt."""
SUMMARY_FIRST_S: Final = 1.0
SUMMARY_LIMIT_S: Final = 60.0


class Refusals:
    """One camera's refused frames. `summary` is for the supervising thread, the rest for the capturing one."""

    def __init__(self, started_at: float) -> None:
        self._since: float | None = None  # the first refusal after an admitted frame or a new connection
        self._fault_at = -math.inf
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()  # since the last summary; guarded by _lock
        self._summary_at = started_at
        self._summary_every_s = SUMMARY_FIRST_S

    def over(self) -> None:
        """A frame was admitted, or a new connection begins."""
        self._since = None

    def count(self, reason: NoResultReason, now: float) -> None:
        """One more refused frame."""
        if self._since is None:
            self._since = now
        with self._lock:
            self._counts[reason] += 1

    def is_fault(self, reason: NoResultReason, now: float) -> bool:
        """Whether the refusals so far make the camera unfit, with that reason.

        A frozen picture has lasted long enough already. Not more than one fault a second: a camera
        whose frames are refused for changing reasons fills no log.
        """
        assert self._since is not None
        if (reason != "frozen" and now - self._since < FAULT_AFTER_S) or now - self._fault_at < FAULT_AFTER_S:
            return False
        self._fault_at = now
        return True

    def raise_if_hopeless(self, reason: NoResultReason, now: float) -> None:
        """End the connection when only a new one can help.

        Raises:
            CaptureError: nothing but refused frames for `RECONNECT_AFTER_S`, this one stale or corrupt.
        """
        assert self._since is not None
        if now - self._since < RECONNECT_AFTER_S:
            return
        if reason == "stale":
            raise CaptureError("stale", f"no frame was fresh for {RECONNECT_AFTER_S:.0f} s")
        if reason == "corrupt":
            raise CaptureError("decode", f"no frame was whole for {RECONNECT_AFTER_S:.0f} s")

    def summary(self, now: float) -> dict[str, int] | None:
        """Counts by reason for one log line, or None: after a second, then ever rarer while it lasts."""
        if now - self._summary_at < self._summary_every_s:
            return None
        self._summary_at = now
        with self._lock:
            counts = dict(self._counts)
            self._counts.clear()
        self._summary_every_s = min(self._summary_every_s * 2, SUMMARY_LIMIT_S) if counts else SUMMARY_FIRST_S
        return counts or None
