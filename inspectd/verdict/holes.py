"""Time of which no frame tells: this process stood still, or the camera left frames out.

What counts is when the frames show the scene, not when they came, so jitter of a network is no hole. A hole begins
where it can hide what tells two parts apart: `leave_frames` empty frames, by the usual distance of frames. Where the
scene's time goes back, a recording begins anew or a clock does: that is no continuation, either.
"""

from __future__ import annotations

from typing import Final

JITTER_S: Final = 0.25
"""A hole is at least so long where frames carry no time but their arrival."""


class HoleDetector:
    """Follows the frames of one region. `shown` is in seconds, of any clock that goes evenly."""

    def __init__(self, leave_frames: int) -> None:
        self._intervals = leave_frames + 0.5
        self._index: int | None = None
        self._shown = 0.0
        self._usual_s = 0.0  # between two captured frames, smoothed; 0 while nothing is known

    def before(self, index: int, shown: float, *, least_s: float = 0.0) -> bool:
        """Whether there is a hole, longer than `least_s`, before this frame.

        To be asked for every frame; `index` counts what was captured. A frame told late has none.
        """
        if self._index is None:
            self._index, self._shown = index, shown
            return False
        frames, passed_s = index - self._index, shown - self._shown
        if frames <= 0:
            return False
        self._index, self._shown = index, shown
        interval_s, usual_s = max(0.0, passed_s / frames), self._usual_s
        if not usual_s:
            self._usual_s = interval_s
            return False
        limit_s = max(least_s, self._intervals * usual_s)
        self._usual_s += (min(interval_s, 4 * usual_s) - usual_s) / (4 if 2 * interval_s > usual_s else 2)
        return passed_s - (frames - 1) * usual_s > limit_s or passed_s < -limit_s
