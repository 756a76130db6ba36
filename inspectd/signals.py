"""What the process is asked by signals: to stop, and to read its configuration again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

SAME_SIGNAL_S = 0.3
"""A terminal's Ctrl-C and a parent that passes it on are one request, not an impatient second one."""

_Handler = Callable[[int, FrameType | None], object] | int | None


class Signals:
    """SIGTERM and SIGINT ask for a clean stop, a second one ends the process at once; SIGHUP asks to re-read.

    A context manager: handlers are there while it lasts, and only in the main thread. They note what was asked and
    nothing else: setting an Event there could deadlock with the main thread inside Event.wait.
    """

    def __init__(self) -> None:
        # Written by the handlers, read by the main loop.
        self._stop_at: float | None = None
        self._reload = False
        self._previous: dict[int, _Handler] = {}

    @property
    def stop_asked(self) -> bool:
        return self._stop_at is not None

    def reload_asked(self) -> bool:
        """Whether it was asked since this was called last."""
        asked, self._reload = self._reload, False
        return asked

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_stop)
            self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._on_hangup)
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self._reload = True

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._stop_at is None:
            self._stop_at = now
        elif now - self._stop_at > SAME_SIGNAL_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
