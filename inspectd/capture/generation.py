"""One attempt at a camera: one thread with one source, used once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from inspectd.capture.source import Source
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError, CaptureReason, Stopped, UsageError
from inspectd.frame import Frame
from inspectd.workers import Worker

log = structlog.get_logger(__name__)


class Owner(Protocol):
    """Whom a generation tells, from its own thread, what happens to it."""

    def opened(self, generation: Generation) -> bool:
        """The source is open; False ends the generation."""

    def deliver(self, generation: Generation, frame: Frame) -> bool:
        """Here is a frame; False ends the generation."""

    def ended(self, generation: Generation, reason: CaptureReason, detail: str, err: Exception | None) -> None:
        """The source raised; `err` is what nobody expected."""


class Generation:
    """The thread, its source, and what the owner notes about them (guarded by the owner's lock)."""

    def __init__(
        self, config: CameraConfig, make_source: Callable[[CameraConfig], Source], owner: Owner, now: float
    ) -> None:
        self.worker = Worker(f"capture-{config.name}", self._run)
        self.source: Source | None = None  # written once, by the thread
        # The owner's notes.
        self.since = now  # monotonic seconds: the start, the end of open(), or the last frame
        self.opened_at: float | None = None
        self.delivering = False
        self.forgiven = False  # its silence was excused once
        self.retired = False
        self.give_up_at = 0.0
        self.abandoned = False

        self._config = config
        self._make_source = make_source
        self._owner = owner

    def signal(self) -> None:
        """Ask the thread to end and interrupt its source, without waiting.

        Here `stopping` is set before the source is read, in the thread the source is stored before
        `stopping` is read: an `open()` that begins is one that gets interrupted.
        """
        self.worker.signal()
        if self.source is not None:
            try:
                self.source.interrupt()
            except Exception:  # the caller has other cameras to look after
                log.exception("interrupt_failed", camera=self._config.name)

    def _run(self, stop: threading.Event) -> None:
        """Run the source. What went wrong is reported before the source is closed, which may hang."""
        try:
            self._play(stop)
        except Stopped:  # the sink is closing, and so are we
            pass
        except CaptureError as err:
            self._owner.ended(self, err.reason, str(err), None)
        except UsageError as err:  # a secret or an option that only the source itself looks at
            self._owner.ended(self, "settings", str(err), None)
        except Exception as err:  # noqa: BLE001 - top of a thread: failure becomes a state
            self._owner.ended(self, "internal", f"{type(err).__name__}: {err}", err)
        finally:
            if self.source is not None:
                self.source.close()

    def _play(self, stop: threading.Event) -> None:
        source = self.source = self._make_source(self._config)
        if stop.is_set():
            return
        source.open()
        if not self._owner.opened(self):
            return
        for frame in source.frames():
            if stop.is_set() or not self._owner.deliver(self, frame):
                return
            del frame  # its memory may be the driver's, which needs it for the next
        if self._config.live:
            raise CaptureError("ended", "the stream ended")
        raise CaptureError("finished", "played to the end")
