"""A few frames from a camera, for commissioning and for the checks before the start."""

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
    return meet(config, make_source)[0]


def meet(config: CameraConfig, make_source: Callable[[CameraConfig], Source] = make_source) -> tuple[Frame, str | None]:
    """`probe`, and which camera it was, where that can be known."""
    first: list[Frame] = []

    def take(frame: Frame) -> bool:
        # A copy, for closing takes the decoder's or driver's memory away.
        first.append(dataclasses.replace(frame, planes=tuple(plane.copy() for plane in frame.planes), owner=None))
        return True

    identity = watch(config, take, make_source)
    return first[0], identity


def watch(
    config: CameraConfig,
    take: Callable[[Frame], bool],
    make_source: Callable[[CameraConfig], Source] = make_source,
) -> str | None:
    """Open the camera, hand its whole frames to `take`, in another thread, until it says True; and close it again.

    Waits for the first frame at most about `connect_timeout_s + stall_timeout_s`, for each further one
    `stall_timeout_s`, even when a library hangs: its thread is then left behind. Returns the camera's identity.

    Raises:
        CaptureError: the camera cannot be opened, or no whole frame came in time.
        InspectdError: what `take` raised.
    """
    attempt = _Attempt(config, take, make_source)
    worker = Worker(f"probe-{config.name}", attempt.run)
    limit_s = config.connect_timeout_s + config.stall_timeout_s
    worker.start()
    in_time = attempt.done.wait(limit_s)
    taken = 0
    while not in_time and attempt.taken > taken:
        taken, limit_s = attempt.taken, config.stall_timeout_s
        in_time = attempt.done.wait(limit_s)
    worker.signal()
    if not in_time and attempt.source is not None:
        attempt.source.interrupt()
    # Also after success: the device must be free for whoever opens it next.
    worker.join(CLOSE_S)
    if not in_time:
        step = "connected, but sent no whole frame" if attempt.opened else "could not be opened"
        raise CaptureError("timeout", f"{step} within {limit_s:g} s")
    if attempt.error is not None:
        raise attempt.error
    return None if attempt.source is None else attempt.source.identity


class _Attempt:
    """What the probe's thread does and found; read by the caller."""

    def __init__(
        self,
        config: CameraConfig,
        take: Callable[[Frame], bool],
        make_source: Callable[[CameraConfig], Source],
    ) -> None:
        self.source: Source | None = None
        self.opened = False
        self.taken = 0
        self.error: Exception | None = None
        self.done = threading.Event()  # set when enough was taken, or error is there
        self._config = config
        self._take = take
        self._make_source = make_source

    def run(self, stop: threading.Event) -> None:
        try:
            self._take_frames(stop)
        except InspectdError as err:
            self.error = err
        except Exception as err:  # noqa: BLE001 - top of a thread: the caller raises it
            self.error = CaptureError("internal", f"{type(err).__name__}: {err}")
            self.error.__cause__ = err
        finally:
            self.done.set()
            if self.source is not None:
                self.source.close()

    def _take_frames(self, stop: threading.Event) -> None:
        self.source = self._make_source(self._config)
        self.source.open()
        self.opened = True
        for frame in self.source.frames():
            if stop.is_set():
                break
            if not frame.corrupt:
                if self._take(frame):
                    return
                self.taken += 1
        wanted = "another" if self.taken else "a"
        raise CaptureError("ended", f"ended before {wanted} whole frame came")


def check_rois(config: CameraConfig, frame: Frame) -> None:
    """Hold the configured ROIs against a real frame.

    Raises:
        ConfigError: one of them lies outside of it.
    """
    if problem := roi_outside(config, frame.width, frame.height):
        raise ConfigError(f"camera {config.name}: {problem}")
