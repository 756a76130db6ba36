"""From any thread to the journal's: a bounded queue that never makes its callers wait."""

from __future__ import annotations

import math
import threading
import time
from collections import deque

from inspectd.verdict.journal.loss import Loss
from inspectd.verdict.journal.row import Entry
from inspectd.workers import Deadline

CAPACITY_ROWS = 50_000
CAPACITY_BYTES = 64_000_000
BATCH_ROWS = 1000
BATCH_BYTES = 1_000_000
"""At most so much in one commit: some 20 ms, whatever waits."""
CALM_S = 1.0
"""For so long after a loss more is expected, and the journal does not count as well."""


class HandOver:
    """A bounded FIFO with one consumer. Full means that what comes is lost, counted and told of in a row of its own.

    Once full it takes nothing until half of it is free again, so that a loss is one range and not every second row.
    What the consumer took counts as waiting until it says `done`: a batch that is being retried needs its room.
    The lock is held for a few assignments, never across the disk; that is what makes `put` as good as free.
    """

    def __init__(self, capacity_rows: int = CAPACITY_ROWS, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_rows = capacity_rows
        self._capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # the consumer waits here
        self._settled = threading.Condition(self._lock)  # whoever flushes waits here
        # All guarded by _lock.
        self._entries: deque[Entry] = deque()
        self._oldest = 0.0  # monotonic seconds when the first of _entries came
        self._rows = 0  # waiting and taken
        self._bytes = 0
        self._full = False
        self._loss: Loss | None = None
        self._lost = 0
        self._lost_at = -math.inf  # monotonic seconds
        self._progress_at = 0.0  # monotonic seconds of the last `done`
        self._put = 0  # rows that were ever put, and of these done
        self._done = 0
        self._flush = False
        self._failing = False
        self._idle = False  # the consumer waits for a first entry
        self._closed = False

    # -- any thread ---------------------------------------------------------------------------------

    def put(self, entry: Entry) -> bool:
        """Append, without waiting; False: there was no room, and it is lost."""
        with self._lock:
            if self._closed or not self._has_room(len(entry.body)):
                self._lose(entry)
                return False
            if self._loss is not None:
                self._append_loss()
            self._append(entry)
            if self._idle:
                self._idle = False
                self._work.notify()
            return True

    def flush(self, timeout_s: float) -> bool:
        """Have everything that was put so far written now; False: it failed, or took too long."""
        with self._lock:
            target = self._put
            if self._failing:
                return False
            if self._done < target:
                self._flush = True
                self._work.notify()
                self._settled.wait_for(lambda: self._done >= target or self._failing, timeout_s)
            return self._done >= target

    def set_failing(self, failing: bool) -> None:
        """Whether a flush has no chance at the moment; those that wait learn it at once."""
        with self._lock:
            self._failing = failing
            if failing:
                self._settled.notify_all()

    def lose(self, entry: Entry) -> None:
        """This entry will never be written."""
        with self._lock:
            self._lose(entry)

    def close(self) -> None:
        """Take nothing from now on, and wake the consumer; what is in it can still be taken."""
        with self._lock:
            self._closed = True
            self._work.notify()

    @property
    def losing(self) -> bool:
        """Whether something was lost within the last CALM_S, or would be now."""
        with self._lock:
            return self._is_full() or time.monotonic() - self._lost_at < CALM_S

    @property
    def lost(self) -> int:
        """Rows that were lost so far."""
        with self._lock:
            return self._lost

    @property
    def stuck_s(self) -> float:
        """For how long something has waited and nothing was done."""
        with self._lock:
            return time.monotonic() - max(self._oldest, self._progress_at) if self._rows else 0.0

    # -- the journal's thread -----------------------------------------------------------------------

    def take(self, wait_s: float, idle_s: float) -> list[Entry] | None:
        """The next batch, once its oldest entry waited for `wait_s`, or somebody flushes, or it is full.

        Nothing after `idle_s` without an entry; None when closed and empty.
        """
        with self._lock:
            if not self._entries and not self._closed:
                self._idle = True
                self._work.wait(idle_s)
                self._idle = False
            if self._loss is not None and not self._is_full():
                self._append_loss()
            if not self._entries:
                self._flush = False
                return None if self._closed else []
            while not (self._flush or self._closed or len(self._entries) >= BATCH_ROWS):
                left = self._oldest + wait_s - time.monotonic()
                if left <= 0 or not self._work.wait(left):
                    break
            return self._batch()

    def done(self, batch: list[Entry]) -> None:
        """The batch is written, or what is not was reported by `lose`."""
        with self._lock:
            self._rows -= len(batch)
            self._bytes -= sum(len(entry.body) for entry in batch)
            self._done += len(batch)
            self._progress_at = time.monotonic()
            self._settled.notify_all()

    def pause(self, seconds: float) -> None:
        """Wait before another try, at most until closed."""
        deadline = Deadline(seconds)
        with self._lock:
            while not self._closed and not deadline.passed:
                self._work.wait(deadline.left())

    def abandon(self) -> int:
        """Give up everything that waits or was taken; how many rows that was."""
        with self._lock:
            rows, self._rows, self._bytes = self._rows, 0, 0
            self._lost += rows
            self._entries.clear()
            self._settled.notify_all()
            return rows

    @property
    def settled(self) -> bool:
        """Whether everything that was ever put is written."""
        with self._lock:
            return self._done == self._put

    def _has_room(self, size: int) -> bool:
        if self._rows >= self._capacity_rows or self._bytes + size > self._capacity_bytes:
            self._full = True
            return False
        return not self._is_full()

    def _is_full(self) -> bool:
        if self._full and self._rows <= self._capacity_rows // 2 and self._bytes <= self._capacity_bytes // 2:
            self._full = False
        return self._full

    def _append(self, entry: Entry) -> None:
        if not self._entries:
            self._oldest = time.monotonic()
        self._entries.append(entry)
        self._rows += 1
        self._bytes += len(entry.body)
        self._put += 1

    def _append_loss(self) -> None:
        # Before the entry that comes next, so that in the chain a loss stands in front of what follows it.
        assert self._loss is not None
        self._append(self._loss.entry())
        self._loss = None

    def _lose(self, entry: Entry) -> None:
        if self._loss is None:
            self._loss = Loss()
        self._loss.add(entry)
        self._lost += 1
        self._lost_at = time.monotonic()

    def _batch(self) -> list[Entry]:
        batch: list[Entry] = []
        size = 0
        while self._entries and len(batch) < BATCH_ROWS and (not batch or size < BATCH_BYTES):
            batch.append(self._entries.popleft())
            size += len(batch[-1].body)
        if not self._entries:
            self._flush = False
        return batch  # what is left is due at once: _oldest stays

    def __len__(self) -> int:
        with self._lock:
            return self._rows
