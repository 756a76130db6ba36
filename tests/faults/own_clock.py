"""`inspectd run -c FILE` with cameras of the test that have a clock of their own, as one with RTCP reports has.

What is stepped is this machine's wall clock, never the camera's: its frames go on telling the time it had before.
"""

import dataclasses
import functools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from faulty_camera import FaultyCamera

from inspectd import station
from inspectd.capture.camera import Camera
from inspectd.cli import main

FPS = 25


class OwnClock(FaultyCamera):
    """Its frames say when they were taken by a wall clock that nobody steps; `pts` is the same moment, monotonic."""

    AHEAD_S = time.time() - time.monotonic()

    def frames(self):
        for frame in super().frames():
            yield dataclasses.replace(frame, clock="rtcp", captured_at=frame.pts + self.AHEAD_S)


if __name__ == "__main__":
    station.Camera = functools.partial(Camera, make_source=lambda config: OwnClock(fps=FPS))
    main()
