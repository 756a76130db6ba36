"""Whether a camera repeats its pictures: frozen, though frames go on coming."""

from __future__ import annotations

import math
import zlib
from itertools import pairwise
from typing import Final

import cv2
import numpy as np

from inspectd.capture.quality import F32
from inspectd.frame import U8, Box, Frame

SAMPLED_ROWS: Final = 64
REMEMBERED: Final = 16
"""Pictures of a camera that count as already seen. An RTSP camera's encoder shows one and the same picture a little
differently after each key picture: measured with x264 (constant quality, key pictures every 1 and 3 s), a still picture
was byte-identical for 0.4 to 2.8 s at a time, but in the long run only one of few. A USB camera's JPEG rate control
goes to and fro between two quantisers on it, and a driver that hangs gives the buffers of its ring out in turn.

Not found so is a frozen picture with noise in it behind an encoder that codes it anew in nearly every picture: constant
bit rate (H.264 at 4 Mbit/s, HEVC at 3 Mbit/s, 1280x720), gradual refresh instead of key pictures. See `frozen_level`.
"""
BLOCK: Final = 32
"""Where a `frozen_level` is set, pictures are compared by the means of blocks of about so many pixels each way."""


class FrostDetector:
    """Tells a camera that repeats its pictures from a scene that merely stands still.

    A real sensor's noise changes some byte in every frame. So at most `SAMPLED_ROWS` evenly spaced
    rows of plane 0 (luma) of each ROI are compared, byte for byte, with the last `remembered` pictures that
    differed. Only the ROIs are looked at: a clock that the camera draws into a corner goes on ticking
    over a frozen picture. The pictures are kept across reconnects, for a frozen camera stays frozen.

    With a `level` a picture must also be brighter or darker by more than that, in the mean of some block, than the one
    that moved last: an encoder that codes a frozen picture anew each time changes no block by as much, a living
    sensor's noise of some strength does in the long run. It costs 0.07 ms for 640x480, 0.12 ms for 1280x720.

    In other regions every way of coding one and the same picture is new once more. So until more ways were seen
    there than one picture has, the regions that were looked at before go on telling whether anything moves.
    """

    def __init__(self, boxes: list[Box], frozen_after_s: float, level: float = 0.0, *, remembered: int = 1) -> None:
        self._frozen_after_s = frozen_after_s
        self._level = level  # of brightness, 0 to 255; 0 where any difference is life
        self._layout: tuple[str, int, int] | None = None
        self._moved_at = math.inf  # arrival of the last frame that showed something new, monotonic seconds
        self._view = _View(boxes, remembered)
        self._view_before: _View | None = None  # for as long as `_view` cannot tell yet

    def look_at(self, boxes: list[Box], frozen_after_s: float, level: float = 0.0) -> None:
        """Go by other regions and other limits; since when nothing has moved stays known."""
        self._frozen_after_s, self._level = frozen_after_s, level
        if boxes == self._view.boxes:
            return
        if self._view_before is None and self._view.known:
            self._view_before = self._view
        self._view = _View(boxes, self._view.remembered)

    def frozen(self, frame: Frame) -> bool:
        """Whether there was nothing new to be seen for too long. Every ROI must lie inside the frame."""
        layout = (frame.format, frame.width, frame.height)
        if layout != self._layout:
            self._layout, self._view_before = layout, None
            self._view = _View(self._view.boxes, self._view.remembered)
        moved = self._view.shows_new(frame, self._level)
        if self._view_before is not None:
            moved = self._view_before.shows_new(frame, self._level)
            if len(self._view.known) == self._view.remembered:
                self._view_before = None
        if moved:
            self._moved_at = frame.arrival
        return frame.arrival - self._moved_at > self._frozen_after_s


class _View:
    """Some regions of a camera's frames, and the last `remembered` pictures that differed there."""

    def __init__(self, boxes: list[Box], remembered: int) -> None:
        self.boxes = boxes
        self.remembered = remembered
        self.known: dict[int, None] = {}  # checksums of pictures, the one that was seen last at the end
        self._means: list[F32] | None = None  # of each region's blocks, in the picture that moved last

    def shows_new(self, frame: Frame, level: float) -> bool:
        """Whether it is none of the known pictures (from now on it is), nor like the one that moved last."""
        picture = 0
        for box in self.boxes:
            picture = zlib.crc32(np.ascontiguousarray(_sample(frame, box)).data, picture)
        new = picture not in self.known
        self.known.pop(picture, None)
        self.known[picture] = None
        if len(self.known) > self.remembered:
            del self.known[next(iter(self.known))]
        return new and (not level or self._moves(frame, level))

    def _moves(self, frame: Frame, level: float) -> bool:
        """Whether some block is brighter or darker by more than the level than when this was so the last time."""
        means = [_block_means(frame, box) for box in self.boxes]
        if self._means is not None:
            pairs = zip(means, self._means, strict=True)
            if all(float(np.abs(block - moved).max()) <= level for block, moved in pairs):
                return False
        self._means = means
        return True


def _sample(frame: Frame, box: Box) -> U8:
    """Some rows of a box, as a view of plane 0: uint8 [rows, columns] or [rows, columns, bytes]."""
    return _cut_out(frame, box)[:: -(-box.height // SAMPLED_ROWS)]


def _block_means(frame: Frame, box: Box) -> F32:
    """Means of a box's blocks, which share it evenly: float32 [down, across] or [down, across, bytes]."""
    area = _cut_out(frame, box)
    rows = np.linspace(0, area.shape[0], max(1, round(box.height / BLOCK)) + 1).astype(np.int64)
    columns = np.linspace(0, area.shape[1], max(1, round(box.width / BLOCK)) + 1).astype(np.int64)
    # Summed up along the rows by OpenCV, several times as fast as by NumPy.
    strips = [cv2.reduce(area[top:end], 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S) for top, end in pairwise(rows)]
    sums = np.add.reduceat(np.concatenate(strips), columns[:-1], axis=1)
    pixels = np.outer(np.diff(rows), np.diff(columns))
    means: F32 = (sums / pixels.reshape(pixels.shape + (1,) * (sums.ndim - 2))).astype(np.float32)
    return means


def _cut_out(frame: Frame, box: Box) -> U8:
    """A box, as a view of plane 0: uint8 [rows, columns] or [rows, columns, bytes]."""
    plane = frame.planes[0]
    pixels_per_column = frame.width // plane.shape[1]  # 2 where a column packs two pixels (YUYV)
    left, right = box.x // pixels_per_column, -(-(box.x + box.width) // pixels_per_column)
    return plane[box.y : box.y + box.height, left:right]
