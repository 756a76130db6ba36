"""A region of a frame on its own: copied in the decoder's planes, later turned into a picture."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np

from inspectd.frame import U8, Box, Frame, PixelFormat
from inspectd.model.preprocess import Preprocessor, PreprocessSpec

# How many frame pixels one sample of each plane stands for, across and down.
_STEPS: dict[PixelFormat, tuple[tuple[int, int], ...]] = {
    "yuv420p": ((1, 1), (2, 2), (2, 2)),
    "nv12": ((1, 1), (2, 2)),
    "yuv422p": ((1, 1), (2, 1), (2, 1)),
    "yuyv422": ((2, 1),),
    "gray": ((1, 1),),
    "bgr24": ((1, 1),),
    "rgb24": ((1, 1),),
}

_ENCODERS: dict[str, tuple[str, list[int]]] = {
    "png": (".png", []),  # OpenCV's own choice: half the time of zlib's level 1, a tenth larger
    "jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]),
}


def views(frame: Frame, area: Box) -> tuple[Box, list[U8]]:
    """The part of each plane that shows the area, as views, and the box that they show together.

    That box is the area, grown to even pixels so that chroma stays where it was, or to the frame's edge.

    Raises:
        ValueError: the area does not lie inside the frame, or a plane is smaller than the frame claims.
    """
    if not area.fits(frame.width, frame.height):
        raise ValueError(f"box {area} does not fit a frame of {frame.width}x{frame.height}")
    left, top = area.x // 2 * 2, area.y // 2 * 2
    right = min(frame.width, -(-(area.x + area.width) // 2) * 2)
    bottom = min(frame.height, -(-(area.y + area.height) // 2) * 2)
    cut = []
    for plane, (across, down) in zip(frame.planes, _STEPS[frame.format], strict=True):
        rows, columns = slice(top // down, -(-bottom // down)), slice(left // across, -(-right // across))
        if rows.stop > plane.shape[0] or columns.stop > plane.shape[1]:
            raise ValueError(f"a plane of {plane.shape[1]}x{plane.shape[0]} is too small for {area}")
        cut.append(plane[rows, columns])
    return Box(left, top, right - left, bottom - top), cut


def copied(frame: Frame, area: Box, shown: Box, planes: list[U8]) -> tuple[Frame, Box]:
    """The views as a small frame with memory of its own, and where the area is in it."""
    cutout = Frame(
        format=frame.format,
        width=shown.width,
        height=shown.height,
        planes=tuple(plane.copy() for plane in planes),
        matrix=frame.matrix,
        full_range=frame.full_range,
        arrival=frame.arrival,
        captured_at=frame.captured_at,
        clock=frame.clock,
    )
    return cutout, Box(area.x - shown.x, area.y - shown.y, area.width, area.height)


class Developer:
    """Turns cutouts into files. Holds scratch memory for the size it had last: not thread-safe."""

    def __init__(self, encoding: Literal["png", "jpeg"]) -> None:
        self.suffix, self._options = _ENCODERS[encoding]
        self._size = (0, 0)
        self._convert: Preprocessor
        self._rgb: U8

    def develop(self, cutout: Frame, area: Box) -> bytes:
        """The area in its own size, with the colours that the network sees, as PNG or JPEG.

        Raises:
            ValueError: OpenCV makes no picture of that.
        """
        if self._size != (area.width, area.height):
            # Not validated: its limits are those of a network's input, and this is no network's.
            spec = PreprocessSpec.model_construct(width=area.width, height=area.height)
            self._convert = Preprocessor(spec)
            self._rgb = np.empty((area.height, area.width, 3), np.uint8)
            self._size = (area.width, area.height)
        try:
            self._convert(cutout, area, self._rgb)
            cv2.cvtColor(self._rgb, cv2.COLOR_RGB2BGR, self._rgb)
            done, data = cv2.imencode(self.suffix, self._rgb, self._options)
        except cv2.error as err:
            raise ValueError(str(err).strip()) from err
        if not done:
            raise ValueError(f"no {self.suffix} of {area.width}x{area.height}")
        encoded: Any = data
        return bytes(encoded)
