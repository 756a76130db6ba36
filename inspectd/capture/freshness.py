"""How old is a frame that has only just arrived? Finding a backlog from two clocks that share no zero.

While nobody reads (our process was stopped, the network stalled, a server hands a newcomer the last
seconds it kept), frames queue up in sockets and servers. Read at last, they look freshly arrived, and a
verdict on them would name a part that has long gone. What gives them away is the stream's own time:

    lag = arrival - pts

is a constant (the clocks' distance) plus the frame's delay. The least lag seen, the floor, belongs to a
frame without delay; what a frame has above the floor is its age. From this follow the rules:

- Older than `max_age_s` above the floor is stale. Jitter only lifts single frames; a gap in the stream
  moves arrival and pts alike; a forward jump of pts lowers the lag, and the floor with it.
- All time here is time in which both clocks went on, frame by frame the shorter step: neither a
  standstill of ours nor a jump of the camera's makes anything look proven for longer than it was.
- The camera's clock may run slow by `DRIFT` against ours: the floor rises by so much.
- A pts that goes back is a new clock: everything starts anew, as it does with a new connection.
- **At a start the floor is not known.** A burst of old frames sets it too high with its first frame, and
  each later frame lowers it: all would look young. But in a burst the stream's time runs faster than
  ours, so the lag falls, and in a stream that keeps up it does not. So every frame counts as stale until
  the floor is settled: not undercut for a while, in which each window came down near it, and the least
  lags of the last three windows agree (else the frames are still on their way down to it). A healthy
  stream pays 0.6 s per connection, one that began with a burst 1.2 s. Least values, not single frames,
  because jitter hardly moves them.
- The same again when a settled floor is undercut: it was none, and what came before was older than
  believed. Each time the floor has to hold for longer, which stops a backlog that shrinks slowly from
  looking settled again and again.

What it cannot see: a delay that was there from the first frame on and never changes (a recorder in
between that always holds back two seconds), and a backlog that shrinks by less than 0.4 % of real time
(`TOLERANCE_S / HORIZON_S`) or grows by less than `DRIFT`. From here these look like a clock.

A stream without pts has no second clock: nobody can tell how old its frames are, so all are stale. (A USB driver's
few buffers need none: whoever reads them knows when they were empty, see `v4l2`.)
"""

from __future__ import annotations

import math
from typing import Final

DRIFT: Final = 200e-6
"""Crystal oscillators keep 100 ppm; two of them, and a camera in a hot cabinet."""
WINDOW_S: Final = 0.2
HOLD_S: Final = 3 * WINDOW_S
"""How long a floor must hold to be one; twice as long when one was undercut, up to `HORIZON_S`."""
HORIZON_S: Final = 5.0
TOLERANCE_S: Final = 0.020
BACKWARD_S: Final = 0.1
"""A pts that goes back by less is a reordered or rounded one, not a new clock."""


class BacklogDetector:
    """Tells old frames of one stream; `restart()` at each new connection.

    `max_age_s` may change at any time: how late the stream is stays known.
    """

    def __init__(self, max_age_s: float) -> None:
        self.max_age_s = max_age_s
        self.restart()
        # Meaningful only once a pts was seen; all in seconds.
        self._time = 0.0  # in which both clocks went on
        self._floor = 0.0
        self._settled = False
        self._agreeing = 0  # how many whole windows in a row had the least lag of the one before
        self._anchor = self._anchored_at = 0.0  # what the lag must not undercut, and since when
        self._hold_s = HOLD_S
        self._window_from = self._window_least = 0.0
        self._least_before: float | None = None  # of the last whole window

    def restart(self) -> None:
        """Forget the clocks: nothing is known of the next frame."""
        self._arrival = -math.inf
        self._pts: float | None = None
        self._stale = True  # what the last frame was
        self.waited_s = 0.0  # the last frame's delay above the floor, as far as both clocks tell

    def stale(self, arrival: float, pts: float | None) -> bool:
        """Whether the frame is, or may be, older than `max_age_s`. To be asked for every frame, in order.

        `arrival` in monotonic seconds, `pts` in seconds of the stream.
        """
        if pts is None or not math.isfinite(pts):
            # A single one among others is as old as its neighbour, but behind a gap it may be from within it.
            self._stale = self._stale or arrival - self._arrival > self.max_age_s
        else:
            lag = arrival - pts
            if self._pts is None or pts < self._pts - BACKWARD_S:
                self._start_clock(lag)
            else:
                self._follow_clock(lag, went_on=max(0.0, min(arrival - self._arrival, pts - self._pts)))
            self._pts = pts
            self.waited_s = max(0.0, lag - self._floor)
            self._stale = not self._settled or self.waited_s > self.max_age_s
        self._arrival = arrival
        return self._stale

    def _start_clock(self, lag: float) -> None:
        self._floor = lag
        self._hold_s = HOLD_S
        self._unsettle()
        self._window_from, self._window_least = self._time, lag

    def _follow_clock(self, lag: float, went_on: float) -> None:
        self._time += went_on
        if self._time - self._window_from >= WINDOW_S:
            least, before = self._window_least, self._least_before
            agree = before is not None and abs(least - before) <= TOLERANCE_S
            self._agreeing = self._agreeing + 1 if agree else 0
            if not self._settled and least - self._floor > self.max_age_s / 2:
                self._anchored_at = self._time  # up here nothing proves the floor
            self._least_before = least
            self._window_from, self._window_least = self._time, lag
        self._window_least = min(self._window_least, lag)
        self._floor = min(self._floor + DRIFT * went_on, lag)
        if lag < self._anchor - TOLERANCE_S:
            self._hold_s = min(self._hold_s * 2, HORIZON_S) if self._settled else max(self._hold_s, 2 * HOLD_S)
            self._unsettle()
        elif self._agreeing >= 2 and self._time - self._anchored_at >= self._hold_s:
            self._settled = True
        if self._time - self._anchored_at >= HORIZON_S:
            self._anchor, self._anchored_at = self._floor, self._time
            self._hold_s = max(self._hold_s / 2, HOLD_S)

    def _unsettle(self) -> None:
        self._settled = False
        self._agreeing = 0
        self._least_before = None
        self._anchor, self._anchored_at = self._floor, self._time
