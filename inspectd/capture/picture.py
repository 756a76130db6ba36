"""A decoded picture as a `Frame`: its planes as views of the decoder's memory, and what its colours mean."""

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np
import structlog
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter

from inspectd.frame import U8, ColorMatrix, Frame, PixelFormat

log = structlog.get_logger(__name__)

_DIRECT: Final[dict[str, PixelFormat]] = {
    "yuv420p": "yuv420p",
    "yuvj420p": "yuv420p",
    "nv12": "nv12",
    "yuv422p": "yuv422p",
    "yuvj422p": "yuv422p",
    "yuyv422": "yuyv422",
    "gray": "gray",
    "bgr24": "bgr24",
    "rgb24": "rgb24",
}
"""FFmpeg's names for the layouts that are taken as they are; all else is converted once, by libswscale."""

_MATRICES: Final[dict[int, ColorMatrix | None]] = {
    1: "bt709",
    2: None,  # not tagged
    4: "bt601",  # FCC, BT.470BG and SMPTE 170M differ from BT.601 by less than a step of 255
    5: "bt601",
    6: "bt601",
    7: "bt709",  # SMPTE 240M, within 1 % of BT.709
}
"""AVColorSpace (ITU-T H.273, table 4); what is absent (BT.2020, YCgCo) goes through libswscale to RGB."""


class PictureReader:
    """Turns one source's pictures into frames. `converted` counts those that needed libswscale.

    Untagged pictures are taken as players take them: BT.709 from 720 lines on, else BT.601; limited range,
    but for FFmpeg's `yuvj*` and gray, which are full range.
    """

    def __init__(self, source: str) -> None:
        self.converted = 0
        self._source = source
        self._reformatter = VideoReformatter()

    def read(self, picture: VideoFrame) -> Frame:
        """The picture's planes, without copying, and its colours; the clocks are the caller's to set."""
        full_range = _is_full_range(picture)
        name = picture.format.name
        odd = name == "yuyv422" and picture.width % 2 == 1
        if name not in _DIRECT or odd or (picture.colorspace not in _MATRICES and _has_chroma_matrix(name)):
            picture = self._convert(picture, full_range=full_range)
            full_range = full_range or picture.format.name == "rgb24"
        matrix = _MATRICES.get(picture.colorspace) or ("bt709" if picture.height >= 720 else "bt601")
        format_ = _DIRECT[picture.format.name]
        return Frame(
            format=format_,
            width=picture.width,
            height=picture.height,
            planes=_planes(picture, format_),
            matrix=matrix,
            full_range=full_range or format_ in ("bgr24", "rgb24"),
            arrival=0.0,
            captured_at=0.0,
            clock="arrival",
            owner=picture,
        )

    def _convert(self, picture: VideoFrame, *, full_range: bool) -> VideoFrame:
        """Into yuv420p with the same matrix and range, or RGB where it is RGB or the matrix is not ours."""
        rgb = picture.format.is_rgb or picture.format.has_palette or picture.colorspace not in _MATRICES
        wanted = "rgb24" if rgb else "yuv420p"
        if self.converted == 0:
            log.warning("pixel_format_converted", source=self._source, format=picture.format.name, to=wanted)
        self.converted += 1
        range_ = ColorRange.JPEG if full_range else ColorRange.MPEG
        return self._reformatter.reformat(
            picture,
            format=wanted,
            src_color_range=range_,
            dst_color_range=ColorRange.JPEG if rgb else range_,
            threads=1,
        )


def _planes(picture: VideoFrame, format_: PixelFormat) -> tuple[U8, ...]:
    """Views of the decoder's memory, each of which keeps it alive."""
    width, height = picture.width, picture.height
    half_width, half_height = -(-width // 2), -(-height // 2)
    match format_:
        case "yuv420p":
            chroma = (half_height, half_width)
            return _view(picture, 0, height, width), _view(picture, 1, *chroma), _view(picture, 2, *chroma)
        case "yuv422p":
            chroma = (height, half_width)
            return _view(picture, 0, height, width), _view(picture, 1, *chroma), _view(picture, 2, *chroma)
        case "nv12":
            interleaved = _view(picture, 1, half_height, 2 * half_width)
            return _view(picture, 0, height, width), interleaved.reshape(half_height, half_width, 2)
        case "yuyv422":
            return (_view(picture, 0, height, 2 * width).reshape(height, width // 2, 4),)
        case "gray":
            return (_view(picture, 0, height, width),)
        case "bgr24" | "rgb24":
            return (_view(picture, 0, height, 3 * width).reshape(height, width, 3),)


def _view(picture: VideoFrame, index: int, rows: int, row_bytes: int) -> U8:
    """uint8 [rows, row_bytes] of one plane; a negative line size (bottom row first) is turned over."""
    plane = picture.planes[index]
    lines = np.frombuffer(cast("Any", plane), np.uint8).reshape(-1, abs(plane.line_size))
    if plane.line_size < 0:
        lines = lines[::-1]
    return lines[:rows, :row_bytes]


def _is_full_range(picture: VideoFrame) -> bool:
    """The tag decides; without one, `yuvj*` and gray are full range (as in libswscale), all else limited."""
    name = picture.format.name
    if picture.color_range == ColorRange.UNSPECIFIED:
        return name.startswith(("yuvj", "gray")) or picture.format.is_rgb
    return bool(picture.color_range == ColorRange.JPEG)


def _has_chroma_matrix(name: str) -> bool:
    return name not in ("gray", "bgr24", "rgb24")
