"""From any thread to the one that owns the sockets: a bounded queue that a poller can wait for."""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A bounded FIFO with one consumer, which sleeps in a poller on `fd` and not on a condition.

    Full means wait: `put` blocks until there is room, at most for its timeout, and then says so. Nothing
    is ever dropped here.

    The wake-up. Writing to `fd` costs a system call, so producers do it only when the consumer may be
    asleep. The consumer calls `may_sleep()` right before it polls, which under the lock finds the queue
    empty and sets `_asleep`; a producer appends and looks at `_asleep` under the same lock. So either the
    consumer sees the item and does not sleep, or the producer sees `_asleep` and writes. If that happens
    between `may_sleep()` and the poll, the poll finds `fd` readable and returns at once. The harmless
    race: a consumer that wakes for another reason can leave a byte behind, which costs one empty turn.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        # All guarded by _lock, fd's life too: writing to a closed one could reach somebody else's file.
        self._items: deque[T] = deque()
        self._asleep = False
        self._closed = False
        self._fd_open = True

    def put(self, item: T, timeout_s: float | None = None) -> bool:
        """Append and wake the consumer. False when closed: nothing was taken.

        With no timeout the bound does not count: for the few messages that must never wait.

        Raises:
            TimeoutError: there was no room for `timeout_s`; nothing was taken.
        """
        with self._lock:
            if timeout_s is not None and not self._room.wait_for(self._has_room, timeout_s):
                raise TimeoutError
            if self._closed:
                return False
            self._items.append(item)
            if self._asleep:
                self._asleep = False
                os.eventfd_write(self.fd, 1)
            return True

    def _has_room(self) -> bool:
        return self._closed or len(self._items) < self.capacity

    def may_sleep(self) -> bool:
        """Consumer: called right before the poll; False when there is something to do instead."""
        with self._lock:
            self._asleep = not self._items and not self._closed
            return self._asleep

    def woken(self) -> None:
        """Consumer: `fd` was readable; take the signal off it."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def take(self, most: int) -> list[T]:
        """Consumer: up to `most` items in the order of their arrival, without waiting."""
        with self._lock:
            self._asleep = False
            taken = [self._items.popleft() for _ in range(min(most, len(self._items)))]
            if taken:
                self._room.notify(len(taken))
            return taken

    def close(self) -> None:
        """Refuse what comes from now on and wake everybody; what is in it can still be taken."""
        with self._lock:
            self._closed = True
            self._room.notify_all()
            if self._fd_open:
                os.eventfd_write(self.fd, 1)

    def release(self) -> None:
        """Consumer: close, and give `fd` back once it no longer polls. May be called twice."""
        self.close()
        with self._lock:
            if self._fd_open:
                self._fd_open = False
                os.close(self.fd)

    def __len__(self) -> int:
        with self._lock:
            return len(self._items)
