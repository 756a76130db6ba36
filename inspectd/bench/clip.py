"""A recording as an industrial camera would send it, generated."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from inspectd.frame import U8

BIT_RATE = 6_000_000  # at 1080p30; scaled with the number of pixels per second
GOP = 60
SPEED = 6  # pixels that the belt moves per frame
BUFFER_S = 0.25  # of the rate control
NOISE = 2.0  # standard deviation of the sensor's noise, in levels of 255


def make_clip(path: Path, frames: int, width: int, height: int, fps: int) -> None:
    """Write H.264, main profile, no B-frames, GOP 60, 6 Mbit/s at 1080p30, BT.709 limited.

    Constant bit rate within `BUFFER_S`, as cameras send it: a key frame must be through the network before
    the next frames wait. Without that bound x264 makes key frames of 350 kB, which take 29 ms to decode on
    one core; as one frame in sixty they would be the p99 of every latency, and of no camera.

    A textured belt with parts on it moves under the camera, and the sensor has noise: neither flat, which
    would decode too fast, nor all noise, which no camera sends at that rate. `width` and `height` are even.
    """
    rng = np.random.default_rng(0)
    belt = _belt(rng, 2 * width, height)  # wraps around
    noise = [rng.normal(0, NOISE, (height, width)).round().astype(np.int8) for _ in range(4)]
    chroma = [_grains(rng, width, height // 2, 40, 4).astype(np.uint8) for _ in range(2)]  # [H/2, 2 * W/2]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        rate = max(100_000, BIT_RATE * width * height * fps // (1920 * 1080 * 30))
        stream.bit_rate = rate
        context.options = {
            "preset": "veryfast",
            "profile": "main",
            "maxrate": str(rate),
            "bufsize": str(int(rate * BUFFER_S)),
        }
        context.gop_size, context.max_b_frames, context.time_base = GOP, 0, Fraction(1, fps)
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        for index in range(frames):
            left = SPEED * index % width
            noisy = cv2.add(belt[:, left : left + width], noise[index % len(noise)], dtype=cv2.CV_8U)
            luma = np.asarray(noisy, np.uint8)
            half = left // 2 % (width // 2)
            container.mux(stream.encode(_picture(luma, [c[:, half : half + width // 2] for c in chroma], index)))
        container.mux(stream.encode(None))


def _belt(rng: np.random.Generator, width: int, height: int) -> U8:
    """Luma [height, width], the right half like the left: rubber with texture, and machined parts on it."""
    half = width // 2
    texture = _grains(rng, half, height, 2, 6) + _grains(rng, half, height, 12, 8) + _grains(rng, half, height, 90, 12)
    canvas = np.ascontiguousarray((texture - 290).clip(20, 230).astype(np.uint8))
    side = max(8, min(half, height) // 5)
    for left in range(side, half - side // 2, 2 * side):
        for top in range(side, height - side // 2, 2 * side):
            cv2.circle(canvas, (left, top), side // 2, int(rng.integers(140, 220)), -1)
            cv2.circle(canvas, (left, top), side // 5, 40, max(1, side // 20))
            ends = rng.integers(-side // 2, side // 2, 4).tolist()
            cv2.line(canvas, (left + ends[0], top + ends[1]), (left + ends[2], top + ends[3]), 90, 1)
    return np.concatenate([canvas, canvas], axis=1)


def _grains(rng: np.random.Generator, width: int, height: int, scale: int, deviation: float) -> npt.NDArray[np.float32]:
    """Noise around 128 with grains of about `scale` pixels."""
    grains = rng.normal(0, deviation, (-(-height // scale), -(-width // scale))).astype(np.float32)
    return np.asarray(cv2.resize(grains, (width, height), interpolation=cv2.INTER_CUBIC) + 128)


def _picture(luma: U8, chroma: list[U8], index: int) -> VideoFrame:
    height, width = luma.shape
    picture = VideoFrame(width, height, "yuv420p")
    for plane, values in zip(picture.planes, [luma, *chroma], strict=True):
        rows = np.asarray(memoryview(plane)).reshape(-1, plane.line_size)
        rows[: values.shape[0], : values.shape[1]] = values
    picture.pts = index
    picture.colorspace, picture.color_range = Colorspace.ITU709, ColorRange.MPEG
    return picture
