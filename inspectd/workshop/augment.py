"""Augmentation: what a line varies from part to part, drawn anew each time a picture is trained on.

The presets follow torchvision's transforms v2 (flips, affine, resized crop, brightness, contrast, gamma, blur, noise),
without those that change hue or saturation: the colour may be the defect. The pixels are moved by OpenCV, on uint8
as they come: measured at 224 on one thread, one affine costs 0.3 ms a picture, v2's 2.2 ms, grid_sample 3.1 ms, and
training itself 18 ms. Here all geometry is one affine, and all brightness one look-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inspectd.errors import UsageError
from inspectd.frame import U8
from inspectd.workshop.options import Preset

_PARAMETERS = 13  # drawn for each picture, whether they are used or not
_NOISE_BANK = 64  # pixels that the noise is larger than a picture, each way
_NOISE_SIGMA = 24.0  # levels, of the bank

_F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Ranges:
    """How far things vary. Probabilities and shares, unless a unit is named."""

    turns: bool  # also by quarter turns, which are no different where there is no up
    crops: bool  # cut out and enlarge, as what lies on a texture is everywhere
    still: float = 0.33  # pictures that are not moved but by flips, so that the true size and place are seen as well
    rotation_deg: float = 5.0
    smallest: float = 0.85  # scale of a moved picture; never above 1, so that nothing of it leaves the picture
    crop_area: float = 0.6  # smallest area of a crop
    gain: float = 0.15
    offset: float = 10.0  # levels
    gamma: float = 0.15  # of its logarithm
    focus: float = 0.3  # blurred or sharpened
    blur_sigma: float = 1.0  # pixels of 224, at most
    sharpen: float = 0.5  # at most
    noise: float = 0.5
    noise_sigma: float = 4.0  # levels, at most


_PRESETS: dict[Preset, _Ranges | None] = {
    "industrial": _Ranges(turns=False, crops=False),
    "texture": _Ranges(turns=True, crops=True),
    "none": None,
}


class Augmenter:
    """A preset, ready to be called for each batch.

    `industrial`: flips; rotation, scale and shift that keep the whole picture in view; brightness, contrast, gamma;
    a little blur or sharpness; sensor noise. For parts in a fixture or on a belt.
    `texture`: the same, with quarter turns and crops of at least 0.6 of the area. For surfaces without up and down
    (steel, fabric, cells), where the defect is larger than what a crop cuts off.
    `none`: pictures as they are.

    Raises:
        UsageError: no such preset.
    """

    def __init__(self, preset: Preset = "industrial") -> None:
        if preset not in _PRESETS:
            raise UsageError(f"augmentation {preset!r}: unknown; there are {', '.join(get_args(Preset))}")
        self.preset: Preset = preset
        self._ranges = _PRESETS[preset]

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Every picture varied by itself: uint8 [B, H, W, 3] to the same, on the CPU.

        The generator (of the CPU) decides alone, and is advanced by 13 numbers a picture by every preset but `none`.
        """
        if self._ranges is None:
            return pixels
        drawn = torch.rand(len(pixels), _PARAMETERS, generator=generator, dtype=torch.float64).numpy()
        varied = torch.empty_like(pixels, memory_format=torch.contiguous_format)
        for source, target, numbers in zip(pixels.numpy(), varied.numpy(), drawn, strict=True):
            target[:] = _vary(source, self._ranges, numbers)
        return varied


def _vary(picture: U8, ranges: _Ranges, drawn: _F64) -> U8:
    """One picture, uint8 [H, W, 3]; `drawn` are uniform numbers in 0..1."""
    height, width = picture.shape[:2]
    matrix = _geometry(width, height, ranges, drawn[:7])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(picture, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    toned = np.asarray(cv2.LUT(moved, _tones(ranges, drawn[7:10])), np.uint8)
    return _noise(_focus(toned, ranges, drawn[10]), ranges, drawn[11], drawn[12])


def _geometry(width: int, height: int, ranges: _Ranges, drawn: _F64) -> _F64:
    """Where each pixel comes from, [2, 3]: (x, y) = M @ (x', y', 1)."""
    symmetry, moved, *rest = drawn
    flip_x, flip_y, turn = int(symmetry * 8) & 1, int(symmetry * 8) >> 1 & 1, int(symmetry * 8) >> 2
    linear, shift = np.diag([1.0 - 2 * flip_x, 1.0 - 2 * flip_y]), np.zeros(2)
    if ranges.turns and turn and width == height:
        linear = linear[:, ::-1]  # transposed, which with the flips makes all eight symmetries of a square
    size = np.array([width, height], np.float64)
    if moved >= ranges.still:
        change, shift = (_crop if ranges.crops else _tilt)(size, ranges, *rest)
        linear = change @ linear
    middle = (size - 1) / 2
    return np.column_stack([linear, middle + shift - linear @ middle])


def _crop(
    size: _F64, ranges: _Ranges, angle: float, part: float, right: float, down: float, shape: float
) -> tuple[_F64, _F64]:
    """Part of the picture enlarged to its size: [2, 2] and the shift [2] of the middle, from new pixels to old ones."""
    area, aspect = ranges.crop_area + (1 - ranges.crop_area) * part, (4 / 3) ** (2 * shape - 1)
    share = np.minimum(1, np.sqrt([area * aspect, area / aspect]))
    return np.diag(share), np.array([right - 0.5, down - 0.5]) * (1 - share) * size


def _tilt(
    size: _F64, ranges: _Ranges, angle: float, part: float, right: float, down: float, shape: float
) -> tuple[_F64, _F64]:
    """The whole picture, turned, made smaller and moved as far as it stays in view; otherwise like `_crop`."""
    radians = math.radians(ranges.rotation_deg) * (2 * angle - 1)
    cos, sin = math.cos(radians), math.sin(radians)
    outer = cos * size + abs(sin) * size[::-1]  # what it needs, turned
    largest = float((size / outer).min())
    scale = ranges.smallest + (largest - ranges.smallest) * part
    rotation = np.array([[cos, sin], [-sin, cos]]) / scale
    room = size - scale * outer
    return rotation, -rotation @ (np.array([right - 0.5, down - 0.5]) * room)


def _tones(ranges: _Ranges, drawn: _F64) -> U8:
    """Gamma, contrast about the middle and brightness as one look-up table, uint8 [256], the same for each channel."""
    gamma, gain, offset = 2 * drawn - 1
    levels = 255 * (np.arange(256) / 255) ** math.exp(ranges.gamma * gamma)
    levels = (levels - 128) * (1 + ranges.gain * gain) + 128 + ranges.offset * offset
    return np.asarray(np.rint(levels).clip(0, 255), np.uint8)


def _focus(picture: U8, ranges: _Ranges, drawn: float) -> U8:
    """Some pictures less sharp than the lens, some more (unsharp mask)."""
    if drawn >= ranges.focus:
        return picture
    strength = 2 * drawn / ranges.focus - 1  # -1 blurred … 1 sharpened
    sigma = max(0.3, ranges.blur_sigma * min(picture.shape[:2]) / 224)
    if strength < 0:
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), max(0.3, -strength * sigma)), np.uint8)
    amount = strength * ranges.sharpen
    return np.asarray(
        cv2.addWeighted(picture, 1 + amount, cv2.GaussianBlur(picture, (0, 0), sigma), -amount, 0), np.uint8
    )


def _noise(picture: U8, ranges: _Ranges, strength: float, place: float) -> U8:
    if strength >= ranges.noise:
        return picture
    height, width = picture.shape[:2]
    y, x = divmod(int(place * _NOISE_BANK**2), _NOISE_BANK)
    noise = _noise_bank(width, height)[y : y + height, x : x + width]
    share = strength / ranges.noise * ranges.noise_sigma / _NOISE_SIGMA
    return np.asarray(cv2.addWeighted(picture, 1, noise, share, -128 * share), np.uint8)


@lru_cache(maxsize=4)
def _noise_bank(width: int, height: int) -> U8:
    """Sensor noise around 128 with a deviation of 24, mostly in brightness; larger than a picture each way."""
    rng = np.random.default_rng(13)
    size = (height + _NOISE_BANK, width + _NOISE_BANK)
    luma = rng.standard_normal((*size, 1), dtype=np.float32)
    chroma = rng.standard_normal((*size, 3), dtype=np.float32)
    return np.rint(128 + _NOISE_SIGMA * (0.9 * luma + 0.43 * chroma)).clip(0, 255).astype(np.uint8)
