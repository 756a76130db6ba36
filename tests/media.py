"""Real video for tests: clips encoded with PyAV, each picture stamped with a bar code of its index.

The bar code survives H.264 and MJPEG: 16 bits as big black and white blocks along the top edge, and
the same bits inverted in the row below, so that a damaged or blended picture reads as None, never as
another index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.bitstream
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace

from inspectd.frame import Frame

U8 = npt.NDArray[np.uint8]
Picture = Callable[[int], U8]
"""Index -> uint8 RGB [H, W, 3]."""

BITS = 16
_TAGS = {"bt601": Colorspace.SMPTE170M, "bt709": Colorspace.ITU709}
_SWS = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709}


def moving_pattern(width: int, height: int) -> Picture:
    """Coloured gradients with a bright square that moves right: every picture differs from the last."""
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 // width, y * 255 // height, 255 - x * 255 // width], axis=-1).astype(np.uint8)
    side = max(8, height // 8)

    def picture(index: int) -> U8:
        rgb = base.copy()
        left = index * 4 % (width - side)
        rgb[height // 2 : height // 2 + side, left : left + side] = 240
        return rgb

    return picture


def barcode_block(width: int) -> int:
    """Side of one bar code block, in pixels, for a picture of that width (from 160)."""
    return max(8, width // 40)


def draw_barcode(rgb: U8, index: int) -> None:
    """Stamp `index` (modulo 65536) into the top left corner of uint8 RGB [H, W, 3], in place."""
    block = barcode_block(rgb.shape[1])
    for bit in range(BITS):
        on = bool(index >> bit & 1)
        left = bit * block
        rgb[:block, left : left + block] = 255 if on else 0
        rgb[block : 2 * block, left : left + block] = 0 if on else 255


def read_barcode(picture: Frame | U8) -> int | None:
    """The index stamped into a frame, or into a luma or gray plane [H, W]; None where it cannot be trusted."""
    plane = luma(picture) if isinstance(picture, Frame) else picture
    block = barcode_block(plane.shape[1])
    if plane.shape[0] < 2 * block or plane.shape[1] < BITS * block:
        return None
    rim = block // 4
    index = 0
    for bit in range(BITS):
        columns = slice(bit * block + rim, (bit + 1) * block - rim)
        upper = float(plane[rim : block - rim, columns].mean())
        lower = float(plane[block + rim : 2 * block - rim, columns].mean())
        if abs(upper - lower) < 100:
            return None
        index |= int(upper > lower) << bit
    return index


def luma(frame: Frame) -> U8:
    """The luma plane [H, W] of a frame, the green channel where it is RGB."""
    plane = frame.planes[0]
    if frame.format == "yuyv422":
        return plane[:, :, ::2].reshape(frame.height, frame.width)
    return plane[:, :, 1] if plane.ndim == 3 else plane


def write_clip(
    path: Path,
    count: int,
    *,
    size: tuple[int, int] = (320, 240),
    fps: float = 30,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    picture: Picture | None = None,
    barcode: bool = True,
    matrix: str | None = None,
    full_range: bool | None = None,
    gop: int = 30,
    bframes: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode `count` pictures and return `path`; its suffix names the container (.mp4, .mkv, .avi, .h264…).

    `matrix` (bt601, bt709) and `full_range` are how the pictures are converted and what the stream's
    tags say; None leaves the tag out (and converts as BT.601, limited range).
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        if matrix is not None:
            context.colorspace = _TAGS[matrix]
        if full_range is not None:
            context.color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
        elif codec == "mjpeg":
            context.color_range = ColorRange.JPEG  # the encoder takes no other
        context.gop_size = gop
        context.max_b_frames = bframes
        context.options = _encoder_options(codec, gop, bframes) | (options or {})
        for frame in _pictures(count, size, pix_fmt, picture, barcode, matrix, bool(full_range) or codec == "mjpeg"):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _encoder_options(codec: str, gop: int, bframes: int) -> dict[str, str]:
    if codec == "libx264":
        params = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:b-adapt=0"
        return {"preset": "ultrafast", "crf": "20", "x264-params": params, "threads": "1"}
    if codec == "libx265":
        params = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:log-level=none:pools=none"
        return {"preset": "ultrafast", "x265-params": params}
    if codec == "mjpeg":
        return {"qmin": "2", "qmax": "3"}
    return {}


def _pictures(
    count: int,
    size: tuple[int, int],
    pix_fmt: str,
    picture: Picture | None,
    barcode: bool,
    matrix: str | None,
    full: bool,
) -> Iterator[av.VideoFrame]:
    draw = picture or moving_pattern(*size)
    for index in range(count):
        rgb = np.ascontiguousarray(draw(index))
        assert rgb.shape == (size[1], size[0], 3)
        if barcode:
            rgb = rgb.copy()
            draw_barcode(rgb, index)
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
            format=pix_fmt,
            src_color_range=ColorRange.JPEG,
            dst_colorspace=_SWS[matrix or "bt601"],
            dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        )
        frame.pts = index
        yield frame


def access_units(path: Path) -> list[dict[str, Any]]:
    """The clip's coded pictures in decoding order: `pts`, `dts` (seconds), `key`, `data` (Annex B for H.264)."""
    units: list[dict[str, Any]] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        name = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}.get(stream.codec_context.name)
        to_annex_b = av.bitstream.BitStreamFilterContext(name, stream) if name else None
        for packet in container.demux(stream):
            converted = to_annex_b.filter(packet if packet.size else None) if to_annex_b else [packet]
            units += [
                {
                    "pts": float(unit.pts * stream.time_base),
                    "dts": float(unit.dts * stream.time_base),
                    "key": unit.is_keyframe,
                    "data": bytes(unit),
                }
                for unit in converted
                if unit.size
            ]
    return units
