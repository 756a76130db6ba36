"""Resizing a plane exactly: averaged over the area where it shrinks, linear where it grows.

Each axis is a small table: which source samples make an output sample, and with what weight. So an
axis of its own, a fractional offset and subsampled chroma need no second way. With integers in numpy
this takes half the time of OpenCV's INTER_AREA at ratios that are no whole numbers, and agrees with
it to half a level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from inspectd.frame import U8

_Unsigned = npt.NDArray[np.unsignedinteger[Any]]


class Resampler:
    """Resizes to one target size. Holds scratch memory: not thread-safe; results last until the next call."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._scratch: dict[str, npt.NDArray[Any]] = {}

    def resize(self, source: U8, out: U8) -> None:
        """Resize all of [h, w(, n)] into `out`, uint8 [height, width(, n)]."""
        halvings = _halvings(source, out)
        if halvings is None:
            h, w = source.shape[:2]
            self.columns(self.rows(source, 0, h, 1), 0, w, 1, out)
        else:
            self._halve(source, halvings, out)

    def rows(self, source: U8, offset: int, size: int, shared: int) -> U8:
        """Resize [h, w] or [h, w, n] vertically: [height, w(, n)], scratch memory.

        `offset` and `size` are those of the box in frame pixels; each source row stands for `shared`
        of them, and the first is the one that covers `offset`.
        """
        lines = self._buffer("lines", np.uint8, *source.shape)
        np.copyto(lines, source)
        flat = lines.reshape(len(lines), -1)
        tall = self._buffer("tall", np.uint8, self._height, *source.shape[1:])
        self._weigh(flat, _taps(size, self._height, offset % shared, shared), tall.reshape(self._height, -1))
        return tall

    def columns(self, source: U8, offset: int, size: int, shared: int, out: U8) -> None:
        """Resize [height, w(, n)] horizontally into `out`, uint8 [height, width(, n)]."""
        height, w, *channels = source.shape
        turned = self._buffer("turned", np.uint8, w, height, *channels)
        cv2.transpose(source, turned)
        narrow = self._buffer("narrow", np.uint8, self._width, height, *channels)
        taps = _taps(size, self._width, offset % shared, shared)
        self._weigh(turned.reshape(w, -1), taps, narrow.reshape(self._width, -1))
        cv2.transpose(narrow, out)

    def channel(self, interleaved: U8, channel: int) -> U8:
        """One channel of [h, w, n] as a plane [h, w], scratch memory."""
        plane = self._buffer("channel", np.uint8, *interleaved.shape[:2])
        cv2.extractChannel(interleaved, channel, plane)
        return plane

    def _halve(self, source: U8, halvings: int, out: U8) -> None:
        """The same average where the ratio is a power of two: OpenCV averages 2 x 2 pixels in no time."""
        height, width, *channels = out.shape
        for left in range(halvings - 1, 0, -1):
            half = self._buffer(f"half{left}", np.uint8, height << left, width << left, *channels)
            cv2.resize(source, (width << left, height << left), dst=half, interpolation=cv2.INTER_AREA)
            source = half
        cv2.resize(source, (width, height), dst=out, interpolation=cv2.INTER_AREA)

    def _weigh(self, lines: U8, taps: _Taps, out: U8) -> None:
        """out[j] = rounded sum over k of weight[k, j] * lines[index[k, j]]; lines [n, m], out [target, m]."""
        dtype = taps.weight.dtype
        gathered = self._buffer("gathered", np.uint8, *out.shape)
        product = self._buffer("product", dtype, *out.shape)
        total = self._buffer("total", dtype, *out.shape)
        total.fill(1 << taps.bits >> 1)  # for rounding
        for index, weight in zip(taps.index, taps.weight, strict=True):
            np.take(lines, index, axis=0, out=gathered, mode="clip")  # "raise" would buffer the output
            np.multiply(gathered, weight, out=product)
            np.add(total, product, out=total)
        np.right_shift(total, taps.bits, out=total)
        np.copyto(out, total, casting="unsafe")  # fits: the weights sum to one

    def _buffer(self, name: str, dtype: npt.DTypeLike, *shape: int) -> npt.NDArray[Any]:
        """Scratch memory, C-contiguous; it only ever grows."""
        key = f"{name}{np.dtype(dtype).char}"
        size = math.prod(shape)
        memory = self._scratch.get(key)
        if memory is None or memory.size < size:
            memory = self._scratch[key] = np.empty(size, dtype)
        return memory[:size].reshape(shape)


@dataclass(frozen=True, slots=True, eq=False)
class _Taps:
    index: npt.NDArray[np.intp]  # [taps, target]
    weight: _Unsigned  # [taps, target, 1]; over the taps they sum to 1 << bits
    bits: int


def _halvings(source: U8, out: U8) -> int | None:
    """How often to halve both axes to get there exactly; None where that does not."""
    halvings = max(0, (source.shape[0] // out.shape[0]).bit_length() - 1)
    return halvings if source.shape[:2] == (out.shape[0] << halvings, out.shape[1] << halvings) else None


@lru_cache(maxsize=256)
def _taps(size: int, target: int, phase: int, shared: int) -> _Taps:
    """How `size` pixels become `target`, where `shared` neighbours share one source sample.

    The first sample's first `phase` pixels lie outside. Weights are what the pixels would get, had the
    samples been repeated first: exact at any phase and size.
    """
    step = size / target
    cells = np.arange(target)
    if size > target:  # the share of each pixel in the cell [j * step, (j + 1) * step)
        index = np.floor(cells * step + 1e-9).astype(np.intp) + np.arange(math.ceil(step) + 1)[:, None]
        weight = np.minimum((cells + 1) * step, index + 1) - np.maximum(cells * step, index)
    else:  # the distance to the centre of the cell
        centre = np.clip((cells + 0.5) * step - 0.5, 0, size - 1)
        index = np.floor(centre).astype(np.intp) + np.arange(2)[:, None]
        weight = 1 - np.abs(index - centre)
    weight = np.where(index < size, weight, 0).clip(0)
    sample = (np.minimum(index, size - 1) + phase) // shared

    place = sample - sample[0]
    merged = np.zeros((place.max() + 1, target))
    np.add.at(merged, (place, cells), weight)
    merged /= merged.sum(axis=0)
    # Products of 8-bit pixels and these weights fit their type, and so do their sums.
    bits, dtype = (8, np.uint16) if len(merged) <= 16 else (16, np.uint32)
    weights = _rounded(merged * (1 << bits), 1 << bits).astype(dtype)
    kept = weights.any(axis=1)
    samples = np.minimum(sample[0] + np.arange(len(merged))[:, None], sample.max())
    return _Taps(np.ascontiguousarray(samples[kept]), np.ascontiguousarray(weights[kept, :, None]), bits)


def _rounded(weights: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.intp]:
    """Whole numbers near `weights` [taps, target] that sum to `total` in each column: largest remainders."""
    floor = np.floor(weights).astype(np.intp)
    rank = np.argsort(np.argsort(floor - weights, axis=0, kind="stable"), axis=0)
    rounded: npt.NDArray[np.intp] = floor + (rank < total - floor.sum(axis=0))
    return rounded
