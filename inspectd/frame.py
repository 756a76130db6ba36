"""One picture as the decoder left it: planes, colours, clocks. Nothing is converted here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

PixelFormat = Literal["yuv420p", "nv12", "yuv422p", "yuyv422", "gray", "bgr24", "rgb24"]
"""Layout of the planes, each a uint8 array whose rows may be padded (strided), never its pixels.

- `yuv420p`: Y [H, W], U [ceil(H/2), ceil(W/2)], V alike
- `nv12`:    Y [H, W], UV [ceil(H/2), ceil(W/2), 2]
- `yuv422p`: Y [H, W], U [H, ceil(W/2)], V alike
- `yuyv422`: one [H, W/2, 4] of Y0 U Y1 V
- `gray`:    Y [H, W]
- `bgr24`, `rgb24`: one [H, W, 3]

FFmpeg's `yuvj*` are the same layouts with `full_range=True`.
"""

ColorMatrix = Literal["bt601", "bt709"]
Clock = Literal["rtcp", "driver", "arrival"]
"""Where `captured_at` comes from: RTCP sender report, the kernel driver, or our own clock at arrival."""


@dataclass(slots=True)
class Frame:
    """A decoded picture. Planes may be views into the decoder's memory: `owner` keeps that alive.

    `arrival` is `time.monotonic()` seconds at which the picture's data had arrived, before decoding;
    `captured_at` is Unix seconds by the clock that `clock` names; `pts` is the stream's own time in
    seconds, None where the stream has none. `waited_s` is how long the picture had been on its way or in a
    queue before that, beyond what it always takes; the gate (RTSP) or the source (USB) knows. `corrupt` is set when
    the decoder reported damage.
    """

    format: PixelFormat
    width: int
    height: int
    planes: tuple[U8, ...]
    matrix: ColorMatrix
    full_range: bool
    arrival: float
    captured_at: float
    clock: Clock
    pts: float | None = None
    decode_s: float = 0.0
    corrupt: bool = False
    owner: object = None
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in frame pixels: left, top, width, height."""

    x: int
    y: int
    width: int
    height: int

    def fits(self, width: int, height: int) -> bool:
        """Whether the box lies wholly inside a frame of that size."""
        return (
            self.x >= 0
            and self.y >= 0
            and self.width > 0
            and self.height > 0
            and self.x + self.width <= width
            and self.y + self.height <= height
        )

    def __str__(self) -> str:
        return f"[{self.x}, {self.y}, {self.width}, {self.height}]"
