"""How old is a frame that has only just arrived? Finding a backlog from two clocks that share no zero.

While nobody reads (our process was stopped, the network stalled, a server hands a newcomer the last
seconds it kept), frames queue up in sockets and servers. Read at last, they look freshly arrived, and a
verdict on them would name a part that has long gone. What gives them away is the stream's own time:

    lag = arrival - pts

is a constant (the clocks' distance) plus the frame's delay. The least lag seen, the floor, belongs to a
frame without delay; what a frame has above the floor is its age. From this follow the rules:

- Older than `max_age_s` above the floor is stale. Jitter only lifts single frames; a gap in the stream
  moves arrival and pts alike; a forward jump of pts lowers the lag, and the floor with it.
- The camera's clock may run slow by `DRIFT` against ours: the floor rises by so much, counted in time
  in which the stream itself went on, so that a standstill does not lift it.
- A pts that goes back is a new clock: everything starts anew, as it does with a new connection.
- **At a start the floor is not known.** A burst of old frames sets it too high with its first frame, and
  each later frame lowers it: all would look young. But in a burst the stream's time runs faster than
  ours, so the lag falls, and in a stream that keeps up it does not. So every frame counts as stale until
  the floor is settled: not undercut for a while, and the least lags of two neighbouring windows agree
  (else the frames still hover above it). A healthy stream pays half a second per connection. Least
  values, not single frames, because jitter moves the frames and hardly the least.
- The same again when a settled floor is undercut: it was none, and what came before was older than
  believed. Each time the floor has to hold for longer, which stops a backlog that shrinks slowly from
  looking settled again and again.

What it cannot see: a delay that was there from the first frame on and never changes (a recorder in
between that always holds back two seconds), and a backlog that shrinks by less than 0.4 % of real time
(`TOLERANCE_S / HORIZON_S`) or grows by less than `DRIFT`. From here these look like a clock.

A stream without pts has no second clock. After a start, or a gap longer than `max_age_s`, its frames
count as stale for two windows, which is what a driver's few buffers need to run empty.
"""

from __future__ import annotations

import math
from typing import Final

DRIFT: Final = 200e-6
"""Crystal oscillators keep 100 ppm; two of them, and a camera in a hot cabinet."""
WINDOW_S: Final = 0.25
HOLD_S: Final = 2 * WINDOW_S
"""How long a floor must hold to be one, at first; up to `HORIZON_S` after it was undercut."""
HORIZON_S: Final = 5.0
TOLERANCE_S: Final = 0.020
BACKWARD_S: Final = 0.1
"""A pts that goes back by less is a reordered or rounded one, not a new clock."""


class BacklogDetector:
    """Tells old frames of one stream; `restart()` at each new connection."""

    def __init__(self, max_age_s: float) -> None:
        self._max_age_s = max_age_s
        self.restart()
        # Meaningful only once a pts was seen; all lags in seconds.
        self._floor = 0.0
        self._settled = False
        self._agreed = False  # two neighbouring windows had the same least lag
        self._anchor = self._anchored_at = 0.0  # what the lag must not undercut, and since when
        self._hold_s = HOLD_S
        self._window_from = self._window_least = 0.0
        self._least_before: float | None = None  # of the last whole window

    def restart(self) -> None:
        """Forget the clocks: nothing is known of the next frame."""
        self._arrival = -math.inf
        self._gap = 0.0  # between the last two arrivals
        self._pts: float | None = None
        self._stale = True  # what the last frame was
        self._unclocked_since = math.inf  # the arrival since which frames without pts came without a gap

    def stale(self, arrival: float, pts: float | None) -> bool:
        """Whether the frame is, or may be, older than `max_age_s`. To be asked for every frame, in order.

        `arrival` in monotonic seconds, `pts` in seconds of the stream.
        """
        if pts is None or not math.isfinite(pts):
            self._stale = self._stale_without_pts(arrival)
        else:
            lag = arrival - pts
            if self._pts is None or pts < self._pts - BACKWARD_S:
                self._start_clock(arrival, lag)
            else:
                self._follow_clock(arrival, lag, went_on=min(arrival - self._arrival, pts - self._pts))
            self._pts = pts
            self._stale = not self._settled or lag - self._floor > self._max_age_s
        self._gap = arrival - self._arrival
        self._arrival = arrival
        return self._stale

    def _start_clock(self, arrival: float, lag: float) -> None:
        self._floor = lag
        self._hold_s = HOLD_S
        self._unsettle(arrival)
        self._window_from, self._window_least = arrival, lag

    def _follow_clock(self, arrival: float, lag: float, went_on: float) -> None:
        if arrival - self._window_from >= WINDOW_S:
            least, before = self._window_least, self._least_before
            self._agreed = self._agreed or (before is not None and abs(least - before) <= TOLERANCE_S)
            self._least_before = least
            self._window_from, self._window_least = arrival, lag
        self._window_least = min(self._window_least, lag)
        self._floor = min(self._floor + DRIFT * max(0.0, went_on), lag)
        if lag < self._anchor - TOLERANCE_S:
            if self._settled:
                self._hold_s = min(self._hold_s * 2, HORIZON_S)
            self._unsettle(arrival)
        elif self._agreed and arrival - self._anchored_at >= self._hold_s:
            self._settled = True
        if arrival - self._anchored_at >= HORIZON_S:
            self._anchor, self._anchored_at = self._floor, arrival
            self._hold_s = max(self._hold_s / 2, HOLD_S)

    def _unsettle(self, arrival: float) -> None:
        self._settled = False
        self._agreed = False
        self._least_before = None
        self._anchor, self._anchored_at = self._floor, arrival

    def _stale_without_pts(self, arrival: float) -> bool:
        gap = arrival - self._arrival
        # A slow camera's intervals are no gaps: a gap stands out from the interval before it.
        if gap > max(self._max_age_s, 2 * self._gap):
            self._pts = None
            self._unclocked_since = arrival
        if self._pts is not None:
            return self._stale  # a single frame without: as old as its neighbour
        return arrival - self._unclocked_since < HOLD_S
