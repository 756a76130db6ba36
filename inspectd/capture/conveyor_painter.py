"""Draws the generated conveyor as a decoder leaves a frame: yuv420p planes, BT.709, limited range.

Belt and parts are converted once; a frame is a few passes over uint8 planes: belt, parts, uneven light,
noise. Light multiplies brightness and colour difference alike, as it does on RGB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from inspectd.capture.conveyor_line import Line
from inspectd.frame import U8, Box
from inspectd.model.flange import Light, Patch, make_patch, to_u8
from inspectd.model.synth import make_belt

_Y_SCALE, _C_SCALE = 219 / 255, 224 / 255  # limited range, ITU-R BT.709
_KR, _KG, _KB = 0.2126, 0.7152, 0.0722
_NOISE_SPAN = (251, 241)  # prime, so that a pair of offsets comes back after 60,491 frames only
_NOISE_SIGMA = 3.5

Planes = tuple[U8, U8, U8]  # Y [H, W], U [H/2, W/2], V alike


@dataclass(slots=True)
class _PlanarPatch:
    """A `Patch` per plane, to be laid down in the same way: `plane * through / 255 + colour`."""

    colour: Planes
    through: tuple[U8, U8]  # full and half resolution


class Painter:
    """Draws the frames of a line. Brightness is kept without its offset of 16 until the noise brings it in."""

    def __init__(self, line: Line) -> None:
        self._line = line
        side, half = line.roi.width, line.width // 2
        rng = line.generator(0, 1)
        self._light = Light.draw(rng)
        self._turn = 2 * line.width  # the belt's length
        luma, u, v = _planar(_with_rails(make_belt(line.seed + 100, self._turn, line.height, side), line.roi))
        self._belt = (_continued(luma, line.width), _continued(u, half), _continued(v, half))
        gain = self._light.field(line.width, line.height, side)
        small = to_u8(cv2.resize(gain, (half, line.height // 2), interpolation=cv2.INTER_AREA))
        self._gain = (gain, small)
        self._chroma_offset = to_u8(128 - 128 * small.astype(np.float32) / 255)  # what is missing to neutral
        shape = (line.height + _NOISE_SPAN[1], line.width + _NOISE_SPAN[0])
        self._noise = to_u8(16 + _NOISE_SIGMA * rng.standard_normal(shape, dtype=np.float32))
        self._patches: dict[int, _PlanarPatch] = {}  # of the parts in view
        self.paint(0)  # draws what every part is made from, so that no frame waits for it

    def paint(self, index: int) -> Planes:
        """The planes of a frame, freshly allocated."""
        line = self._line
        luma, u, v = self._belt_at(line.travelled(index))
        for patch, left, top in self._patches_at(index):
            _lay(luma, patch.colour[0], patch.through[0], left, top)
            _lay(u, patch.colour[1], patch.through[1], left // 2, top // 2)
            _lay(v, patch.colour[2], patch.through[1], left // 2, top // 2)
        gain, small = self._gain
        cv2.multiply(luma, gain, dst=luma, scale=1 / 255)
        x, y = index * 74 % _NOISE_SPAN[0], index * 46 % _NOISE_SPAN[1]  # never twice the same in a row
        cv2.add(luma, self._noise[y : y + line.height, x : x + line.width], dst=luma)
        for plane in (u, v):
            cv2.multiply(plane, small, dst=plane, scale=1 / 255)
            cv2.add(plane, self._chroma_offset, dst=plane)
        return luma, u, v

    def _belt_at(self, travelled: int) -> Planes:
        start = -travelled % self._turn
        luma, u, v = self._belt
        width, half = self._line.width, self._line.width // 2
        small = slice(start // 2, start // 2 + half)
        return luma[:, start : start + width].copy(), u[:, small].copy(), v[:, small].copy()

    def _patches_at(self, index: int) -> Iterator[tuple[_PlanarPatch, int, int]]:
        """Parts in view, with the left and top edge of their patches. A part is drawn when it first comes."""
        line = self._line
        drawn: dict[int, _PlanarPatch] = {}
        for plan, x in line.parts_at(index):
            reach = plan.radius + 0.08 * line.roi.width
            if -reach < x < line.width + reach:
                patch = self._patches.get(plan.number)
                if patch is None:
                    rng = line.generator(plan.number, 2)
                    patch = _planar_patch(make_patch(plan.kind, rng, self._light, line.roi.width, plan.radius))
                drawn[plan.number] = patch
                size = patch.through[0].shape[0]
                yield patch, x - size // 2, line.roi.y + line.roi.height // 2 + plan.across - size // 2
        self._patches = drawn


def _planar(rgb: U8) -> Planes:
    """RGB -> Y without its offset (0..219), U and V around 128 at half resolution: BT.709, limited range."""
    colour = rgb.astype(np.float32)
    luma = colour @ np.array([_KR, _KG, _KB], np.float32)
    small = cv2.resize(colour, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    grey = small @ np.array([_KR, _KG, _KB], np.float32)
    u = 128 + _C_SCALE * (small[..., 2] - grey) / (2 * (1 - _KB))
    v = 128 + _C_SCALE * (small[..., 0] - grey) / (2 * (1 - _KR))
    return to_u8(luma * _Y_SCALE), to_u8(u), to_u8(v)


def _planar_patch(patch: Patch) -> _PlanarPatch:
    luma, u, v = _planar(patch.colour)  # weighted by coverage, and U and V around 128 all the same
    small = to_u8(cv2.resize(patch.through.astype(np.float32), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    missing = to_u8(128 * small.astype(np.float32) / 255)  # the belt brings this much of the 128
    return _PlanarPatch((luma, u - missing, v - missing), (patch.through, small))


def _lay(plane: U8, colour: U8, through: U8, left: int, top: int) -> None:
    size = colour.shape[0]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + size, plane.shape[1]), min(top + size, plane.shape[0])
    if x0 < x1 and y0 < y1:
        inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        below = plane[y0:y1, x0:x1]
        cv2.multiply(below, through[inside], dst=below, scale=1 / 255)
        cv2.add(below, colour[inside], dst=below)


def _with_rails(belt: U8, roi: Box) -> U8:
    """The belt between two guide rails, which lie outside the station."""
    framed = belt.copy()
    thick = roi.y * 3 // 4
    if thick > 0:
        shape = (90 + 70 * np.sin(np.linspace(0.3, math.pi, thick))).astype(np.uint8)[:, None, None]
        framed[:thick] = shape
        framed[-thick:] = shape
    return framed


def _continued(plane: U8, more: int) -> U8:
    return np.ascontiguousarray(np.hstack([plane, plane[:, :more]]))
