"""Near duplicates: frames of the same part, found by a print of 256 bytes per picture.

A print is a soft gray thumbnail of 16x16 without its brightness and contrast. Two prints are compared by what is left
of one when gain, offset and a small shift of the other are fitted away (least squares on the other and its two
gradients, the first order of a registration), as a share of its own contrast. Consecutive frames of one part leave
noise; two parts under a fixed camera leave their difference.

That share must be small in itself. It must also be small where the pictures differ at all: the set's own principal
components, what its pictures have in common, are taken out of every print, and the rest is set beside what pictures
of the set usually leave of each other. So a station where every good part looks alike does not chain into one group.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from inspectd.frame import U8

F32 = npt.NDArray[np.float32]
Pairs = npt.NDArray[np.int64]  # [P, 2]

SIDE = 16
PRINT_BYTES = SIDE * SIDE

MAX_REST = 0.15
"""Largest share of a print's contrast that may be left between near duplicates."""
MAX_REST_OF_USUAL = 0.5
"""The same without what all pictures have in common, as a share of what is usually left.

Measured on pairs of which each picture was disturbed by itself (up to 1.5 pixels of shift, 8 % of gain, noise of 1 to
4 levels, JPEG at 75 to 95): of generated parts 100 % are found, of NEU-DET 99 %, of ELPV 83 %. Of the pictures as they
are, 1.9 %, 0.4 % and 24 % have a near duplicate; those of ELPV are mostly neighbours in one module.
"""
_USUAL = 0.25  # quantile of the rests against the whole set: the own class, where there are a few
_FEW = 8  # fewer pictures have no usual rest
_COMMON = 16  # principal components that are taken out, at most; more would be the single parts
_COMMON_SHARE = 24  # pictures per component, or a part with many frames would count as what all have in common
_SOFT = 0.6  # sigma in cells: smooth enough for the gradients to follow a shift of a fifth of a cell
_SEEN = 0.5  # gray levels: a thumbnail that varies less shows nothing
_BLOCK = 1024  # rows that are compared at once


def prints(pixels: U8) -> U8:
    """The prints of pictures uint8 RGB [N, H, W, 3]: uint8 [N, 256]. A picture without contrast is all 128."""
    return np.stack([print_of(picture) for picture in pixels]) if len(pixels) else np.empty((0, PRINT_BYTES), np.uint8)


def print_of(rgb: U8) -> U8:
    """The print of one picture, uint8 RGB [H, W, 3]: uint8 [256]."""
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    coarse = cv2.resize(gray, (4 * SIDE, 4 * SIDE), interpolation=cv2.INTER_AREA)
    thumbnail = cv2.resize(coarse.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    thumbnail = cv2.GaussianBlur(thumbnail, (0, 0), _SOFT)
    thumbnail = thumbnail - thumbnail.mean()
    contrast = float(np.abs(thumbnail).max())
    if contrast < _SEEN:
        return np.full(PRINT_BYTES, 128, np.uint8)
    return np.asarray(np.rint(128 + thumbnail * (127 / contrast)), np.uint8).ravel()


def encode_print(row: U8) -> str:
    """One print as 344 characters of base64."""
    return base64.b64encode(row.tobytes()).decode("ascii")


def decode_print(text: str) -> U8:
    """The reverse of `encode_print`: uint8 [256].

    Raises:
        ValueError: no print.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as err:
        raise ValueError(f"a print is base64, not {text[:20]!r}") from err
    if len(raw) != PRINT_BYTES:
        raise ValueError(f"a print has {PRINT_BYTES} bytes, not {len(raw)}")
    return np.frombuffer(raw, np.uint8)


def near_duplicates(a: U8, b: U8 | None = None) -> Pairs:
    """Pairs (i, j) of near duplicates among prints uint8 [N, 256]: a[i] and b[j], or i < j within `a`.

    What is common and what is usual is taken from `b` (or `a`): it should hold more than one part. Pictures without
    contrast are near to nothing. 2,000 prints take about a second on one core.
    """
    every = a if b is None else b
    common = _in_common(every)
    whole, other_whole = _Fitted.of(a), _Fitted.of(every)
    special, other_special = _Fitted.of(a, common), _Fitted.of(every, common)
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(a), _BLOCK):
        rows = slice(start, start + _BLOCK)
        rest = _rest(special.rows(rows), other_special)  # [block, M]
        if b is None:
            np.fill_diagonal(rest[:, start:], np.inf)
        near = rest <= MAX_REST_OF_USUAL * _usual(rest)[:, None]
        near &= _rest(whole.rows(rows), other_whole) <= MAX_REST
        found.append(np.argwhere(near) + np.array([start, 0]))
    pairs = np.concatenate(found)
    return pairs if b is not None else _mutual(pairs, len(a))


ALIKE = 0.08
"""`typical_rest` of a class below which all its pictures may be of one part; a film of one part has 0.04."""


def typical_rest(rows: U8) -> float:
    """What is usually left of one print when another of the set is fitted away, 0..1: the median over pairs.

    Of prints uint8 [N, 256] of a class; below some hundredths, pictures differ by little more than noise. At most 300
    prints are compared. 1.0 where there are less than two.
    """
    some = _Fitted.of(rows[:: max(1, len(rows) // 300)])
    rest = _rest(some, some)
    return float(np.median(rest[~np.eye(len(rest), dtype=np.bool_)])) if len(rest) > 1 else 1.0


@dataclass(frozen=True, slots=True)
class _Fitted:
    """Prints made ready: centred rows [N, 256], their energy [N], a basis [N, 256, 3] of what is fitted away."""

    centred: F32
    energy: F32
    basis: F32

    @classmethod
    def of(cls, rows: U8, common: F32 | None = None) -> _Fitted:
        picture = rows.astype(np.float32).reshape(-1, SIDE, SIDE)
        variants = np.stack([picture, *np.gradient(picture, axis=(1, 2))], axis=1)  # [N, 3, 16, 16]
        stacked = variants.reshape(-1, 3, PRINT_BYTES)
        stacked -= stacked.mean(axis=2, keepdims=True)
        if common is not None:
            stacked -= stacked @ common @ common.T
        energy = (stacked[:, 0] ** 2).sum(axis=1)
        return cls(stacked[:, 0], energy, np.linalg.qr(stacked.transpose(0, 2, 1)).Q)

    def rows(self, rows: slice) -> _Fitted:
        """Some of them, as views."""
        return _Fitted(self.centred[rows], self.energy[rows], self.basis[rows])


def _in_common(rows: U8) -> F32:
    """The principal components that the set's pictures share, orthonormal [256, k]."""
    count = min(_COMMON, len(rows) // _COMMON_SHARE)
    if not count:
        return np.empty((PRINT_BYTES, 0), np.float32)
    centred = rows.astype(np.float32) - rows.mean(axis=1, keepdims=True, dtype=np.float32)
    _, vectors = np.linalg.eigh(centred.T @ centred)  # rising eigenvalues
    return np.asarray(vectors[:, PRINT_BYTES - count :], np.float32)


def _rest(a: _Fitted, b: _Fitted) -> F32:
    """What is left of each when the other is fitted away, the larger share of the two: float32 [N, M], 0..1."""
    return np.maximum(_share_left(a, b), _share_left(b, a).T)


def _share_left(a: _Fitted, b: _Fitted) -> F32:
    explained = np.zeros((len(a.energy), len(b.energy)), np.float32)
    for column in range(3):
        explained += (a.centred @ b.basis[:, :, column].T) ** 2
    share = explained / np.where(a.energy > 0, a.energy, 1)[:, None]  # nothing of nothing is explained
    return np.asarray(np.sqrt(np.clip(1 - share, 0, 1)), np.float32)


def _usual(rest: F32) -> F32:
    """What each row usually leaves of the others, float32 [N]."""
    if rest.shape[1] < _FEW:
        return np.ones(len(rest), np.float32)
    return np.asarray(np.quantile(rest, _USUAL, axis=1, method="higher"), np.float32)


def _mutual(pairs: Pairs, count: int) -> Pairs:
    """Pairs i < j that are near by the measure of either picture."""
    codes = pairs[:, 0] * count + pairs[:, 1]
    both = np.isin(codes, pairs[:, 1] * count + pairs[:, 0])
    return pairs[both & (pairs[:, 0] < pairs[:, 1])]
