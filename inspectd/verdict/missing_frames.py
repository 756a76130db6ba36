"""Time of which no frame tells: this process stood still, or the camera left frames out.

What counts is when the frames show the scene, not when they came, so jitter of a network is no hole; and by the usual
distance of captured frames, of which some may be left out on purpose. Where the scene's time goes back, a recording
begins anew or a clock does: that is no continuation, either.
"""

from __future__ import annotations

from collections import deque
from statistics import median_low
from typing import Final

JITTER_S: Final = 0.25
"""No frame is missing in a shorter time where frames carry none but their arrival."""
USUAL: Final = 9
"""Of so many distances the median is the usual one: a few long ones do not change it, a slower camera soon does."""


class MissingFrames:
    """Follows the judged frames of one region. `shown` is in seconds, of any clock that goes evenly."""

    def __init__(self) -> None:
        self._index = -1
        self._shown = 0.0
        self._distances_s: deque[float] = deque(maxlen=USUAL)  # of two captured frames

    def before(self, index: int, shown: float, *, least_s: float = 0.0) -> int:
        """How many frames are missing between the one that was asked for last and this one; none in up to `least_s`.

        `index` counts what was captured: frames in between that were refused or left out do not lack.
        """
        frames, passed_s, known = index - self._index, shown - self._shown, self._index >= 0
        if frames <= 0:
            return 0
        self._index, self._shown = index, shown
        if not known:
            return 0
        usual_s = median_low(self._distances_s) if self._distances_s else 0.0
        self._distances_s.append(max(0.0, passed_s / frames))
        pause_s = -passed_s if passed_s < 0 else passed_s - (frames - 1) * usual_s
        if not usual_s or pause_s <= least_s:
            return 0
        return max(0, round(pause_s / usual_s) - 1)
