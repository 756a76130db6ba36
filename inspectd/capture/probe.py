"""One frame from a camera, for commissioning and for the checks before the start."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Final

from inspectd.capture.gate import roi_outside
from inspectd.capture.source import Source, make_source
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError, ConfigError, InspectdError
from inspectd.frame import Frame
from inspectd.workers import Worker

CLOSE_S: Final = 1.0


def probe(config: CameraConfig, make_source: Callable[[CameraConfig], Source] = make_source) -> Frame:
    """Open the camera, take its first whole frame, and close it again.

    Takes at most about `connect_timeout_s + stall_timeout_s`, even when a library hangs: its thread is
    then left behind. The frame owns its memory.

    Raises:
        CaptureError: the camera cannot be opened, or no whole frame came in time.
        ConfigError: its secrets cannot be read.
    """
    attempt = _Attempt(config, make_source)
    worker = Worker(f"probe-{config.name}", attempt.run)
    limit_s = config.connect_timeout_s + config.stall_timeout_s
    worker.start()
    in_time = attempt.done.wait(limit_s)
    worker.signal()
    if not in_time and attempt.source is not None:
        attempt.source.interrupt()
    # Also after success: the device must be free for whoever opens it next.
    worker.join(CLOSE_S)
    if attempt.frame is not None:
        return attempt.frame
    if in_time and attempt.error is not None:
        raise attempt.error
    step = "connected, but sent no whole frame" if attempt.opened else "could not be opened"
    raise CaptureError("timeout", f"{step} within {limit_s:g} s")


class _Attempt:
    """What the probe's thread does and found; read by the caller."""

    def __init__(self, config: CameraConfig, make_source: Callable[[CameraConfig], Source]) -> None:
        self.source: Source | None = None
        self.opened = False
        self.frame: Frame | None = None
        self.error: Exception | None = None
        self.done = threading.Event()  # set when frame or error is there
        self._config = config
        self._make_source = make_source

    def run(self, stop: threading.Event) -> None:
        try:
            self.frame = self._first_whole_frame(stop)
        except InspectdError as err:
            self.error = err
        except Exception as err:  # noqa: BLE001 - top of a thread: the caller raises it
            self.error = CaptureError("internal", f"{type(err).__name__}: {err}")
            self.error.__cause__ = err
        finally:
            self.done.set()
            if self.source is not None:
                self.source.close()

    def _first_whole_frame(self, stop: threading.Event) -> Frame:
        self.source = self._make_source(self._config)
        self.source.open()
        self.opened = True
        for frame in self.source.frames():
            if stop.is_set():
                break
            if not frame.corrupt:
                # A copy, for closing takes the decoder's or driver's memory away.
                return dataclasses.replace(frame, planes=tuple(plane.copy() for plane in frame.planes), owner=None)
        raise CaptureError("ended", "ended before a whole frame came")


def check_rois(config: CameraConfig, frame: Frame) -> None:
    """Hold the configured ROIs against a real frame.

    Raises:
        ConfigError: one of them lies outside of it.
    """
    if problem := roi_outside(config, frame.width, frame.height):
        raise ConfigError(f"camera {config.name}: {problem}")
