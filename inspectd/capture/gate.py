"""The gate: which captured frames may be judged.

A frame is held against these rules in this order, and the first that applies names it:

1. `max_fps`   left out on purpose: frames are inspected evenly, at most so often; counted, not published
2. `corrupt`   the decoder reported damage: nothing else about its content can be believed
3. `resized`   another size than before, or a ROI that does not fit: the boxes mean another place
4. `stale`     older than `max_age_ms`: the part has gone; or not known to be younger, or just switched on (USB)
5. `bad_image` dark, bright, flat or blurred beyond what was learnt of a ROI (`quality`), or not seen good for 2 s since
6. `frozen`    nothing but the same pictures for longer than `frozen_after_s`: the camera repeats itself

Every detector sees every frame, also one that an earlier rule takes: a backlog or a frozen picture does
not hide behind `max_fps`. (But damaged content proves neither life nor frost, and is not compared.)
Rules 4 and 6 hold for live sources; a recording is as old and as still as it is. A covered lens gives the same
black picture again and again: it is called dark, which says what to do, and not frozen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

from inspectd.capture.freshness import BacklogDetector
from inspectd.capture.frost import REMEMBERED, FrostDetector
from inspectd.capture.quality import Limits, Quality, QualityWatch
from inspectd.config import CameraConfig
from inspectd.frame import Frame
from inspectd.source_spec import parse_source

Admission = Literal["admitted", "max_fps", "corrupt", "resized", "stale", "bad_image", "frozen"]

PACING_SLACK_S: Final = 1.0
WARM_UP_S: Final = 0.6
"""A USB camera's first pictures of each connection are `stale` for so long: its exposure has yet to settle."""


class Gate:
    """The rules of one camera. Lives as long as the camera, over all its connections; one caller at a time."""

    def __init__(self, config: CameraConfig, limits: Mapping[str, Limits] | None = None) -> None:
        """`limits` are the learnt ones of each ROI, there exactly if the configuration names a `quality`."""
        self._size = config.size  # the first whole frame's size where none is configured
        self._backlog: BacklogDetector | None = None
        self._first_at = math.inf  # arrival of the connection's first frame, monotonic seconds
        self._frost: FrostDetector | None = None
        self._quality: QualityWatch | None = None
        self.adopt(config, limits)

    def adopt(self, config: CameraConfig, limits: Mapping[str, Limits] | None) -> None:
        """Go by other regions and limits. What is known of the camera stays: its size, its backlog, its frost."""
        assert (limits is None) == (config.quality is None), "a gate that was asked for is never left out"
        self._config = config
        self._max_age_s = config.max_age_ms / 1000 if config.live else math.inf
        self._pacer = Pacer(config.max_fps, live=config.live) if config.max_fps else None
        # Only what something outside this process queues can grow old there; generated and recorded
        # pictures that come late (a busy machine) are not old, there is no earlier moment they show.
        # A USB source sees the driver's queue itself, and tells how long a frame has waited there.
        kind = parse_source(config.source).kind
        self._warms_up = kind == "usb"
        if self._backlog is not None:
            self._backlog.max_age_s = self._max_age_s
        elif kind == "rtsp":
            self._backlog = BacklogDetector(self._max_age_s)
        boxes = [roi.area for roi in config.rois]
        watched = config.live and config.frozen_after_s > 0
        if not watched:
            self._frost = None
        elif self._frost is None:
            remembered = REMEMBERED if kind in ("rtsp", "usb") else 1
            self._frost = FrostDetector(boxes, config.frozen_after_s, config.frozen_level, remembered=remembered)
        else:
            self._frost.look_at(boxes, config.frozen_after_s, config.frozen_level)
        self._quality = None if limits is None else QualityWatch(config, limits, self._quality)

    def restart(self) -> None:
        """A new connection: its clocks and queues are new. Size and picture are still those of the same camera."""
        self._first_at = math.inf
        if self._backlog is not None:
            self._backlog.restart()

    def admit(self, frame: Frame, now: float) -> Admission:
        """Judge one frame at `now` (`time.monotonic()` seconds); an RTSP frame is told how long it had waited."""
        due = self._pacer is None or self._pacer.due(frame.arrival, frame.pts)
        self._first_at = min(self._first_at, frame.arrival)
        stale = self._warms_up and frame.arrival - self._first_at < WARM_UP_S
        if self._backlog is not None:
            stale = self._backlog.stale(frame.arrival, frame.pts)
            frame.waited_s = self._backlog.waited_s
        fits = not frame.corrupt and self.misfit(frame) is None
        bad = fits and self._quality is not None and self._quality.bad(frame)
        frozen = fits and self._frost is not None and self._frost.frozen(frame)
        if not due:
            return "max_fps"
        if frame.corrupt:
            return "corrupt"
        if not fits:
            return "resized"
        if stale or now - frame.arrival + frame.waited_s > self._max_age_s:
            return "stale"
        if bad:
            return "bad_image"
        return "frozen" if frozen else "admitted"

    def fault(self, admission: Admission) -> str:
        """What to call the camera's fault when frames are refused so: `dark`, say, rather than `bad_image`."""
        return self._quality.fault if admission == "bad_image" and self._quality is not None else admission

    def detail(self, frame: Frame, admission: Admission) -> str:
        """Why the frame was refused, in one line."""
        if admission == "bad_image" and self._quality is not None:
            return self._quality.detail
        return self.misfit(frame) or "no frame can be judged"

    @property
    def seen(self) -> Mapping[str, Quality]:
        """The quality of the newest frame, by ROI; empty where no limits were learnt. From any thread."""
        return {} if (quality := self._quality) is None else quality.seen

    def misfit(self, frame: Frame) -> str | None:
        """What is wrong with the frame's size, in one line, or None. The first whole frame sets the size."""
        size = (frame.width, frame.height)
        if self._size is None and not frame.corrupt:
            self._size = size
        if self._size is not None and size != self._size:
            return f"the frame is {size[0]}x{size[1]}, expected {self._size[0]}x{self._size[1]}"
        return roi_outside(self._config, *size)

    def unfit(self, config: CameraConfig) -> str | None:
        """The first ROI of another configuration that does not lie inside this camera's frames, as far as known."""
        return None if self._size is None else roi_outside(config, *self._size)


def roi_outside(config: CameraConfig, width: int, height: int) -> str | None:
    """The first ROI that does not lie wholly inside a frame of that size, in one line, or None."""
    for roi in config.rois:
        if not roi.area.fits(width, height):
            return f"ROI {roi.name!r} {roi.area} lies outside the {width}x{height} frame"
    return None


class Pacer:
    """Lets frames through evenly, at most `max_fps` a second in the long run.

    Time is the stream's own where that makes sense, because arrivals come in clumps; but a live
    stream's time is never believed to differ from ours by more than a second, so that a camera with a
    mad clock is neither silenced nor let loose. A recording is paced by its own time alone: how fast
    we read it says nothing.

    Frames are due on a grid of one period. A frame may come early by half the usual distance of frames,
    for then it is the one nearest to that moment: jitter of a camera that already runs at `max_fps`
    costs no frame. A frame late by a whole period begins a new grid, so that nothing is made up for.
    """

    def __init__(self, max_fps: float, *, live: bool) -> None:
        self._period_s = 1 / max_fps
        self._live = live
        self._started = False
        self._interval_s = 0.0  # between frames, smoothed; at most the period
        self._time = 0.0
        self._due_at = 0.0
        self._arrival = 0.0
        self._pts: float | None = None

    def due(self, arrival: float, pts: float | None) -> bool:
        """Whether to let the frame through. To be asked once for each frame, in order."""
        if self._started:
            before, self._time = self._time, self._advance(arrival, pts)
            step = min(max(self._time - before, 0.0), self._period_s)
            self._interval_s += (step - self._interval_s) / 8 if self._interval_s else step
        else:
            self._time = self._due_at = arrival
            self._started = True
        self._arrival, self._pts = arrival, pts
        if self._time < self._due_at - self._interval_s / 2:
            return False
        late = self._time - self._due_at >= self._period_s
        self._due_at = (self._time if late else self._due_at) + self._period_s
        return True

    def _advance(self, arrival: float, pts: float | None) -> float:
        step = math.nan if pts is None or self._pts is None else pts - self._pts
        if not self._live:
            # No time, or a recording that starts over: the frame is due.
            return self._time + step if step > 0 else self._due_at
        if not 0 < step <= PACING_SLACK_S:
            step = arrival - self._arrival
        return min(max(self._time + step, arrival - PACING_SLACK_S), arrival + PACING_SLACK_S)
