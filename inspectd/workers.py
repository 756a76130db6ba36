"""Threads with an owner: a name, a start that comes last, a stop that signals and then joins."""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

log = structlog.get_logger(__name__)

LATE_S = 0.75
"""A thread that gives no sign for longer is late, unless it said beforehand that it may be."""
HANG_S = 8.0
"""A thread, or a batch with its device, that has been late for so long never comes back: only a new process helps."""
BEAT_S = 0.25
"""So long at most a thread waits for work without giving a sign."""


def leave_behind(threads: Sequence[threading.Thread], code: int) -> None:
    """Have the process end with `code` although these threads have not come back.

    One of them may be inside a C++ library, and an interpreter that ends under it is killed (SIGABRT). Only in the main
    thread: elsewhere the process is somebody else's.
    """
    if threads and threading.current_thread() is threading.main_thread():
        atexit.register(_end, code)


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


class Deadline:
    """One time limit that spans several steps, on the monotonic clock."""

    def __init__(self, timeout_s: float) -> None:
        self._at = time.monotonic() + timeout_s

    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._at - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.left() == 0.0


class Worker:
    """A named daemon thread that runs `target(stop)` until it returns or `stop` is set.

    An exception that leaves `target` ends the thread, is kept in `failure`, is logged once with its
    traceback, and reaches `on_failure` (called in the dying thread): failure becomes a state that
    people can see, never a silently missing thread.

    A thread that hangs has no exception. So `target` calls `beat()` on every turn, and who watches over it asks
    `late_s()`. A target that never does is never late.

    `stop()` may be called from anywhere, any number of times, before or after `start()`.
    """

    def __init__(
        self,
        name: str,
        target: Callable[[threading.Event], None],
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.name = name
        self.stopping = threading.Event()
        self.failure: BaseException | None = None  # written once, by the thread itself, before it ends
        self._target = target
        self._on_failure = on_failure
        self._beat_by = math.inf  # monotonic seconds; written by the thread, read anywhere
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def signal(self) -> None:
        """Ask the thread to end, without waiting."""
        self.stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; True when the thread is gone (or was never started)."""
        if self._thread.ident is None or self._thread is threading.current_thread():
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stop(self, timeout_s: float) -> bool:
        """Signal, then wait. False (and one log line) when the thread is still alive afterwards."""
        self.signal()
        gone = self.join(timeout_s)
        if not gone:
            log.error("thread_did_not_stop", thread=self.name, waited_s=timeout_s)
        return gone

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def beat(self, again_in_s: float = LATE_S) -> None:
        """The thread's sign of life: it moves, and will say so again within that time.

        Infinite where it goes to a disk: that may take long without any fault of ours, and whoever owns the disk's
        state tells how that is.
        """
        self._beat_by = time.monotonic() + again_in_s

    def late_s(self, now: float) -> float:
        """For how long its sign of life is overdue, at `now` (monotonic seconds); 0 when it is not."""
        return max(0.0, now - self._beat_by)

    def _run(self) -> None:
        try:
            self._target(self.stopping)
        except BaseException as err:  # top of a thread: failure becomes a state
            self.failure = err
            log.exception("thread_failed", thread=self.name)
            if self._on_failure is not None:
                self._on_failure(err)
