"""A trigger on its way: from the control socket to the frame that answers it."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Trigger:
    """One accepted command to inspect. Times are monotonic seconds.

    Every ROI in `rois` is owed exactly one verdict by `deadline_at`. No frame captured before `due_at`
    answers it, and none under another `config` (hash prefix) than the one it was accepted under.
    """

    trigger_id: str
    camera: str
    part_id: str | None
    rois: tuple[str, ...]
    config: str
    accepted_at: float
    due_at: float
    deadline_at: float


class TriggerBoard:
    """Triggers of one camera that wait for their frame: posted by the ZeroMQ thread, taken by the capture thread.

    Whoever takes or withdraws a trigger alone goes on with it; that is all the board is for. Bounded by
    whoever posts: no more triggers are accepted than a camera's queue holds.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Trigger] = deque()  # guarded by _lock

    def post(self, trigger: Trigger) -> None:
        with self._lock:
            self._waiting.append(trigger)

    def take(self, captured_at: float) -> tuple[Trigger, ...]:
        """All triggers that a frame captured at that monotonic time answers, oldest first."""
        with self._lock:
            if not self._waiting:
                return ()
            taken = tuple(trigger for trigger in self._waiting if trigger.due_at <= captured_at)
            for trigger in taken:
                self._waiting.remove(trigger)
            return taken

    def withdraw(self, trigger: Trigger) -> None:
        """Its time is over; does nothing when a frame took it."""
        with self._lock:
            if trigger in self._waiting:
                self._waiting.remove(trigger)

    def withdraw_all(self) -> tuple[Trigger, ...]:
        """Everything that no frame has taken."""
        with self._lock:
            waiting = tuple(self._waiting)
            self._waiting.clear()
            return waiting
