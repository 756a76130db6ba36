"""What a measurement is: frames, seconds on the wall, seconds of CPU. And the clip, decoded by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame

from inspectd.frame import U8, Box, Frame


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: so many frames, after the warm-up, in so much time."""

    frames: int
    wall_s: float
    cpu_s: float  # user and system, of all threads of the process that did the work


class Stopwatch:
    """Wall and CPU time of this process since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def sample(self, frames: int) -> Sample:
        return Sample(frames, time.perf_counter() - self._wall, time.process_time() - self._cpu)


@dataclass(frozen=True, slots=True)
class Clip:
    """The recording that everything is measured with, its region of interest, and how much is warm-up."""

    path: Path
    box: Box
    warm_up: int  # frames that are played and not measured
    frames: int  # frames that are

    @property
    def total(self) -> int:
        return self.warm_up + self.frames

    def pictures(self) -> Iterator[VideoFrame]:
        """Decode with PyAV, one thread: cameras are decoded so, and more threads cost more CPU time."""
        with av.open(self.path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            yield from container.decode(stream)


def as_frame(picture: VideoFrame) -> Frame:
    """Views of the planes of a yuv420p picture; the clip is tagged BT.709, limited range."""
    width, height = picture.width, picture.height
    sizes = ((height, width), (-(-height // 2), -(-width // 2)), (-(-height // 2), -(-width // 2)))
    planes = tuple(_plane(picture, index, *size) for index, size in enumerate(sizes))
    return Frame("yuv420p", width, height, planes, "bt709", False, 0.0, 0.0, "arrival", owner=picture)


def _plane(picture: VideoFrame, index: int, height: int, width: int) -> U8:
    plane = picture.planes[index]
    rows: U8 = np.frombuffer(cast("Any", plane), np.uint8).reshape(-1, plane.line_size)
    return rows[:height, :width]


@contextmanager
def single_threaded_opencv() -> Iterator[None]:
    """As in the daemon: a crop is too small to be worth more threads."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
