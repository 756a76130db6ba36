"""From the client's thread to the user: a bounded queue of events."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from inspectd.client.events import Event

_SPARE = 64
"""Places beyond the capacity for what is no message; then only the newest of these is kept."""


class Inbox:
    """Whoever puts messages into it asks for `room` first; nothing ever blocks the one who puts.

    Once full it has no room before half of it was taken, so that what was turned away is fetched in few large pieces
    and not one by one.
    """

    def __init__(self, capacity: int, notify: Callable[[], None] = lambda: None) -> None:
        """`notify` is called, in the putting thread, after something was put or the inbox was closed."""
        self._capacity = capacity
        self._notify = notify
        self._changed = threading.Condition()
        # Guarded by _changed.
        self._events: deque[Event] = deque()
        self._was_full = False
        self._closed = False

    def room(self) -> int:
        """How many more messages may be put."""
        with self._changed:
            waiting = len(self._events)
            self._was_full = waiting >= self._capacity or (self._was_full and waiting > self._capacity // 2)
            return 0 if self._was_full else self._capacity - waiting

    def put(self, event: Event) -> None:
        """Append, and wake who waits."""
        with self._changed:
            if len(self._events) >= self._capacity + _SPARE:
                self._events.pop()
            self._events.append(event)
            self._changed.notify()
        self._notify()

    def take(self, timeout_s: float | None) -> Event | None:
        """The oldest event; waits for one, at most `timeout_s`. None when none came, or none ever will."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._closed, timeout_s)
            return self._events.popleft() if self._events else None

    def close(self) -> None:
        """Nothing will come any more; what is in it can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._notify()

    @property
    def closed(self) -> bool:
        """Whether it is closed and empty."""
        with self._changed:
            return self._closed and not self._events
