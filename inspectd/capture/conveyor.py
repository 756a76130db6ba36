"""`conveyor:` a generated camera above a conveyor, whose parts are known: for the demo, tests and a first look."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from inspectd.capture.conveyor_line import Line, default_roi, truth_of
from inspectd.capture.conveyor_painter import Painter
from inspectd.capture.source import Source
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError, Stopped
from inspectd.frame import Frame
from inspectd.source_spec import parse_source

__all__ = ["ConveyorSource", "Line", "default_roi", "truth_of"]


class ConveyorSource(Source):
    """The camera above the line. It keeps its pace on the monotonic clock, and makes every frame ahead of time.

    A consumer that is late makes the belt wait: the schedule moves by what is missing, so that no frame is
    left out and none come in a burst afterwards. `decode_s` is 0, because nothing was decoded.
    """

    def __init__(self, camera: CameraConfig) -> None:
        self._spec = parse_source(camera.source)
        self._interrupted = threading.Event()
        self._painter: Painter | None = None
        self.line: Line | None = None  # set by open

    def open(self) -> None:
        try:
            self.line = Line.from_spec(self._spec)
        except ValueError as err:
            raise CaptureError("settings", str(err)) from None
        self._painter = Painter(self.line)

    def truth(self, index: int) -> str | None:
        """What the station shows in that frame; see `Line.truth`."""
        return truth_of(self._spec, index)

    def frames(self) -> Iterator[Frame]:
        line, painter = self.line, self._painter
        if line is None or painter is None:
            raise CaptureError("internal", "conveyor: frames() before open()")
        period = 1 / line.fps
        due = time.monotonic()
        index = 0
        while not line.frames or index < line.frames:
            planes = painter.paint(index)
            if line.realtime:
                self._interrupted.wait(max(0.0, due - time.monotonic()))
            if self._interrupted.is_set():
                raise Stopped("conveyor: interrupted")
            arrival = time.monotonic()
            yield Frame(
                format="yuv420p",
                width=line.width,
                height=line.height,
                planes=planes,
                matrix="bt709",
                full_range=False,
                arrival=arrival,
                captured_at=time.time(),
                clock="arrival",
                pts=index / line.fps,
            )
            index += 1
            due += period
            if due < arrival:  # more than a period late
                due = arrival + period
        raise CaptureError("finished", f"conveyor: all {line.frames} frames were shown")

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        self._painter = None
