"""A camera in the test process: coloured frames whose `pts` is the moment of their capture, and faults by the dice."""

import random
import time

import numpy as np
from colour_bundle import COLOURS

from inspectd.capture.source import Source
from inspectd.errors import CaptureError
from inspectd.frame import Frame

KINDS = list(COLOURS)


def kind_at(moment):
    """The truth: what every region of a frame captured at that monotonic time shows."""
    return KINDS[int(moment * 1000) * 7919 // 13 % len(KINDS)]


class FaultyCamera(Source):
    """`fps` frames a second; each frame meets a fault with `faults[kind]` as its probability.

    `ended` raises, `stall` is silence beyond any stall timeout, `corrupt` and `resized` spoil the frame, `old` delivers
    it late by a second. `injected` counts them, over all connections.
    """

    SIZE = (160, 80)

    def __init__(self, fps=200.0, seed=0, scene=kind_at, **faults):
        self.period_s = 1 / fps
        self.scene = scene  # monotonic seconds -> kind
        self.faults = faults
        self.dice = random.Random(seed)
        self.injected = dict.fromkeys(faults, 0)
        self.stopped = False
        width, height = self.SIZE
        self.pictures = {k: np.full((height, width, 3), COLOURS[k], np.uint8) for k in KINDS}
        self.small = np.zeros((height // 2, width, 3), np.uint8)

    def __call__(self, config):
        """As `make_source`: the same camera again, its dice go on."""
        self.stopped = False
        return self

    def open(self):
        pass

    def frames(self):
        due = time.monotonic()
        while not self.stopped:
            due = max(due + self.period_s, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            fault = self.fault()
            if fault == "ended":
                raise CaptureError("ended", "the dice say so")
            if fault == "stall":
                self.silence(1.0)
                continue
            now = time.monotonic()
            if fault == "old":
                now -= 1.0
            picture = self.small if fault == "resized" else self.pictures[self.scene(now)].copy()
            # A sensor's noise, or the picture would count as frozen.
            picture[::8, :, 0] ^= self.dice.randrange(2)
            yield Frame(
                format="rgb24",
                width=picture.shape[1],
                height=picture.shape[0],
                planes=(picture,),
                matrix="bt601",
                full_range=True,
                arrival=now,
                captured_at=time.time() - (time.monotonic() - now),
                clock="arrival",
                pts=now,
                corrupt=fault == "corrupt",
            )
        raise CaptureError("ended", "stopped")

    def fault(self):
        throw = self.dice.random()
        for kind, probability in self.faults.items():
            throw -= probability
            if throw < 0:
                self.injected[kind] += 1
                return kind
        return None

    def silence(self, seconds):
        until = time.monotonic() + seconds
        while not self.stopped and time.monotonic() < until:
            time.sleep(0.005)

    def interrupt(self):
        self.stopped = True

    def close(self):
        pass
