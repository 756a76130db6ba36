"""The one preprocessing: what a network sees of a picture, for training, evaluation and the line alike.

The way of a region: cut as views out of the decoder's own planes, each plane resized once to the
network's size, and only then turned into RGB, in one pass, where the engine will read it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from inspectd.frame import U8, Box, ColorMatrix, Frame
from inspectd.model.resample import Resampler

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PreprocessSpec(BaseModel):
    """How a region of interest becomes network input. Stored in the bundle; there is no second place.

    The host writes uint8 RGB [height, width, 3]; `mean` and `std` (of values in 0..1, per RGB channel)
    are applied inside the engine, on the device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(224, ge=16, le=2048)
    height: int = Field(224, ge=16, le=2048)
    resize: Literal["stretch"] = "stretch"
    interpolation: Literal["area"] = "area"
    channels: Literal["rgb"] = "rgb"
    mean: tuple[_Finite, _Finite, _Finite] = (0.485, 0.456, 0.406)
    std: tuple[_Scale, _Scale, _Scale] = (0.229, 0.224, 0.225)


# Luma weights of red and blue: ITU-R BT.601-7 2.5.1 and BT.709-6 3.2.
_LUMA: dict[ColorMatrix, tuple[float, float]] = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


def _yuv_to_rgb(matrix: ColorMatrix, full_range: bool) -> npt.NDArray[np.float32]:
    """[3, 4]: RGB = M @ (Y, U, V, 1), all in 0..255; limited range is Y 16..235 and U, V 16..240.

    For limited range libswscale's tables come out 1 to 2 levels darker than the standard's formula,
    on all channels alike; three quarters of a level are followed here, so that both stay near.
    """
    red, blue = _LUMA[matrix]
    green = 1 - red - blue
    luma, chroma, black, darker = (1.0, 1.0, 0.0, 0.0) if full_range else (255 / 219, 255 / 224, 16.0, 0.75)
    from_u = np.array([0, -2 * blue * (1 - blue) / green, 2 * (1 - blue)]) * chroma
    from_v = np.array([2 * (1 - red), -2 * red * (1 - red) / green, 0]) * chroma
    offset = -luma * black - 128 * (from_u + from_v) - darker
    return np.stack([np.full(3, luma), from_u, from_v, offset], axis=1).astype(np.float32)


_YUV_TO_RGB = {(m, full): _yuv_to_rgb(m, full) for m in _LUMA for full in (False, True)}
_EXPAND = np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)  # limited gray to full


class Preprocessor:
    """Cuts, resizes and converts. One per producer thread: it holds scratch memory, so it is not thread-safe.

    Chroma sits in the middle of the luma pixels that share it, at any offset and size; libswscale's own
    conversion places it so, too.
    """

    def __init__(self, spec: PreprocessSpec) -> None:
        self.spec = spec
        self._resampler = Resampler(spec.width, spec.height)
        self._y, self._u, self._v = np.empty((3, spec.height, spec.width), np.uint8)
        self._yuv = np.empty((spec.height, spec.width, 3), np.uint8)

    def __call__(self, frame: Frame, box: Box, out: U8) -> None:
        """Write the box of the frame to `out`, uint8 RGB [spec.height, spec.width, 3], C-contiguous.

        Raises:
            ValueError: the box leaves the frame, the planes are smaller than the frame claims, or
                `out` is not of that shape.
        """
        if not box.fits(frame.width, frame.height):
            raise ValueError(f"box {box} does not fit a frame of {frame.width}x{frame.height}")
        # OpenCV would silently write elsewhere if the destination did not fit exactly.
        if out.shape != self._yuv.shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}, expected contiguous uint8 {self._yuv.shape}")
        match frame.format:
            case "rgb24":
                self._resize(_cut(frame.planes[0], box), box, out)
            case "bgr24":
                self._resize(_cut(frame.planes[0], box), box, self._yuv)
                cv2.cvtColor(self._yuv, cv2.COLOR_BGR2RGB, out)
            case "gray":
                self._resize(_cut(frame.planes[0], box), box, self._y)
                if not frame.full_range:
                    cv2.LUT(self._y, _EXPAND, self._y)
                cv2.cvtColor(self._y, cv2.COLOR_GRAY2RGB, out)
            case _:
                self._resize_yuv(frame, box)
                cv2.merge((self._y, self._u, self._v), self._yuv)
                cv2.transform(self._yuv, _YUV_TO_RGB[frame.matrix, frame.full_range], out)

    def _resize_yuv(self, frame: Frame, box: Box) -> None:
        """Fill `_y`, `_u` and `_v` from the box of a YUV frame, whatever its layout."""
        resampler = self._resampler
        half = _covering(box, 2, 2)
        wide = _covering(box, 2, 1)
        match frame.format:
            case "yuv420p":
                self._resize(_cut(frame.planes[0], box), box, self._y)
                self._resize(_cut(frame.planes[1], half), box, self._u, 2, 2)
                self._resize(_cut(frame.planes[2], half), box, self._v, 2, 2)
            case "yuv422p":
                self._resize(_cut(frame.planes[0], box), box, self._y)
                self._resize(_cut(frame.planes[1], wide), box, self._u, 2, 1)
                self._resize(_cut(frame.planes[2], wide), box, self._v, 2, 1)
            case "nv12":
                self._resize(_cut(frame.planes[0], box), box, self._y)
                pairs = resampler.rows(_cut(frame.planes[1], half), box.y, box.height, 2)  # [height, w/2, 2]
                resampler.columns(resampler.channel(pairs, 0), box.x, box.width, 2, self._u)
                resampler.columns(resampler.channel(pairs, 1), box.x, box.width, 2, self._v)
            case "yuyv422":
                quads = resampler.rows(_cut(frame.planes[0], wide), box.y, box.height, 1)  # [height, w/2, 4]
                luma = resampler.channel(quads.reshape(self.spec.height, -1, 2), 0)  # [height, w or more]
                resampler.columns(luma[:, box.x % 2 : box.x % 2 + box.width], box.x, box.width, 1, self._y)
                resampler.columns(resampler.channel(quads, 1), box.x, box.width, 2, self._u)
                resampler.columns(resampler.channel(quads, 3), box.x, box.width, 2, self._v)

    def _resize(self, crop: U8, box: Box, out: U8, shared_x: int = 1, shared_y: int = 1) -> None:
        """Resize the box from the crop that covers it, each of whose samples stands for `shared_*` pixels."""
        aligned = (crop.shape[1] * shared_x, crop.shape[0] * shared_y) == (box.width, box.height)
        if aligned and crop.shape[0] >= out.shape[0] and crop.shape[1] >= out.shape[1]:
            self._resampler.resize(crop, out)  # repeating samples before the average would change nothing
        else:
            tall = self._resampler.rows(crop, box.y, box.height, shared_y)
            self._resampler.columns(tall, box.x, box.width, shared_x, out)


def preprocess_picture(rgb: U8, spec: PreprocessSpec) -> U8:
    """A whole picture, uint8 RGB [H, W, 3] or gray [H, W], as the network sees it: uint8 [height, width, 3].

    For training, evaluation and calibration; the very code that serves.
    """
    height, width = rgb.shape[:2]
    frame = Frame(
        format="gray" if rgb.ndim == 2 else "rgb24",
        width=width,
        height=height,
        planes=(np.ascontiguousarray(rgb),),
        matrix="bt601",
        full_range=True,
        arrival=0.0,
        captured_at=0.0,
        clock="arrival",
    )
    out = np.empty((spec.height, spec.width, 3), np.uint8)
    Preprocessor(spec)(frame, Box(0, 0, width, height), out)
    return out


def _cut(plane: U8, box: Box) -> U8:
    """The box of a plane, as a view.

    Raises:
        ValueError: the plane ends before the box does (slicing alone would return less, unnoticed).
    """
    if box.y + box.height > plane.shape[0] or box.x + box.width > plane.shape[1]:
        raise ValueError(f"a plane of {plane.shape[1]}x{plane.shape[0]} is too small for {box}")
    return plane[box.y : box.y + box.height, box.x : box.x + box.width]


def _covering(box: Box, step_x: int, step_y: int) -> Box:
    """The subsampled pixels that the box touches, `step_*` full pixels each."""
    left, top = box.x // step_x, box.y // step_y
    right, bottom = -(-(box.x + box.width) // step_x), -(-(box.y + box.height) // step_y)
    return Box(left, top, right - left, bottom - top)
