"""Simulated defects: drawn onto pictures of good parts, for classes of which hardly any picture exists.

A help to learn with, nothing to judge by: they belong to training only. Lengths are shares of the shorter side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from inspectd.frame import U8

Kind = Literal["scratch", "dent", "stain", "cutpaste"]
F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_KINDS_BY_NAME: tuple[tuple[Kind, str], ...] = (
    ("scratch", r"scratch|crack|scar|groove|hairline|(?<![a-z])line"),
    ("dent", r"dent|dimple|hole|bump|(?<![a-z])pit"),
    ("stain", r"stain|spot|smear|dirt|rust|blot|discolo|(?<![a-z])oil"),
)
TRIES = 8  # until a defect is seen and lies on the part
_VISIBLE = 4.0  # levels by which a pixel must change to count as part of the defect
_CLEARLY = 8.0  # levels by which those pixels must change on average, or the label would be a lie
_ON_PART = 0.75  # of the defect
_GRAY = 1.0  # levels between the channels, on average, up to which a picture has no colour
_AREA = 0.0004  # of the picture that must change at least


def kind_for(class_name: str) -> Kind:
    """What a class of that name probably looks like; `cutpaste` where the name says nothing."""
    for kind, words in _KINDS_BY_NAME:
        if re.search(words, class_name.lower()):
            return kind
    return "cutpaste"


def simulate(pictures: U8, kind: Kind, rng: np.random.Generator) -> tuple[U8, npt.NDArray[np.bool_]]:
    """A defect on each picture, uint8 [N, H, W, 3]: the pictures with it, and where it is, bool [N, H, W].

    `cutpaste` moves a piece of the picture itself, turned and a little brighter or darker, half of them thin as a
    scar (Li et al. 2021, "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization").
    A mask is empty where nothing could be drawn that is seen; such a picture is returned as it came.
    """
    drawn, masks = pictures.copy(), np.zeros(pictures.shape[:3], np.bool_)
    for index, picture in enumerate(pictures):
        part = part_of(picture)
        for _ in range(TRIES):
            result = _DRAW[kind](picture, place_on(part, rng), rng).clip(0, 255).astype(np.uint8)
            mask = seen(result, picture)
            if mask.any() and (mask & part).sum() >= _ON_PART * mask.sum():
                drawn[index], masks[index] = result, mask
                break
    return drawn, masks


def part_of(picture: U8) -> Mask:
    """Where the part is, as far as it differs in colour from the picture's border; everywhere if that says nothing."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    ground = np.broadcast_to(np.median(border, axis=0), picture.shape).astype(np.uint8)
    apart = cv2.blur(difference(picture, ground).clip(0, 255).astype(np.uint8), (5, 5))
    _, found = cv2.threshold(apart, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    side = max(3, min(picture.shape[:2]) // 16)
    part = cv2.morphologyEx(found, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))) > 0
    separate = float(apart[part].mean() - apart[~part].mean()) if part.any() and not part.all() else 0.0
    return part if 0.05 <= part.mean() <= 0.9 and separate > 25 else np.ones(picture.shape[:2], np.bool_)


def difference(a: U8, b: U8) -> F32:
    """The largest of the channels' distances, float32 [H, W]."""
    return np.asarray(cv2.absdiff(a, b).max(axis=2), np.float32)


def seen(result: U8, picture: U8) -> Mask:
    """Where the defect is, bool [H, W]; nowhere if it is too faint or small for the label to be true."""
    apart = difference(result, picture)
    mask = apart > _VISIBLE
    clear = mask.mean() >= _AREA and apart[mask].mean() >= _CLEARLY
    return mask if clear else np.zeros_like(mask)


def carried(
    source: tuple[float, float], goal: tuple[float, float], degrees: float, scale: float = 1.0
) -> npt.NDArray[np.float64]:
    """The affine [2, 3] that turns and scales about `source` and brings it to `goal`, both (x, y)."""
    matrix = np.asarray(cv2.getRotationMatrix2D(source, degrees, scale), np.float64)
    matrix[:, 2] += (goal[0] - source[0], goal[1] - source[1])
    return matrix


def place_on(part: Mask, rng: np.random.Generator) -> tuple[float, float]:
    """A random (x, y) on the part."""
    ys, xs = np.nonzero(part)
    pick = int(rng.integers(len(xs)))
    return float(xs[pick]), float(ys[pick])


# -- drawing: uint8 [H, W, 3] and a place to float32 [H, W, 3] ------------------------------------------


def _scratch(picture: U8, place: tuple[float, float], rng: np.random.Generator) -> F32:
    """A thin bent line that fades, with a lighter or darker rim where the material was thrown up."""
    side = min(picture.shape[:2])
    line = np.zeros(picture.shape[:2], np.float32)
    for _ in range(1 if rng.random() < 0.7 else int(rng.integers(2, 4))):
        length, angle = rng.uniform(0.1, 0.5) * side, rng.uniform(0, math.tau)
        bend = rng.normal(0, 0.12) * length
        along = np.linspace(-0.5, 0.5, 24)
        across = bend * (1 - 4 * along**2) + rng.normal(0, 0.004 * side, len(along)).cumsum() * 0.5
        x = place[0] + along * length * math.cos(angle) - across * math.sin(angle)
        y = place[1] + along * length * math.sin(angle) + across * math.cos(angle)
        strength = np.sin(np.linspace(0.15, math.pi - 0.15, len(along))) * rng.uniform(0.6, 1.0, len(along))
        width = max(1, round(rng.uniform(0.004, 0.014) * side))
        for i in range(len(along) - 1):
            start, end = ((round(float(x[j]) * 16), round(float(y[j]) * 16)) for j in (i, i + 1))
            stroke = np.zeros_like(line)
            cv2.line(stroke, start, end, float(strength[i]), width, cv2.LINE_AA, 4)  # sixteenths of a pixel
            np.maximum(line, stroke, out=line)
    line = _blurred(line, rng.uniform(0.3, 0.8) * max(1.0, side / 224))
    rim: F32 = np.roll(line, (1, 1) if rng.random() < 0.5 else (-1, 1), (0, 1))
    levels = _away(picture, place, rng, 35, 110)
    return _shaded(picture, levels * (line - float(rng.uniform(0, 0.5)) * rim))


def _dent(picture: U8, place: tuple[float, float], rng: np.random.Generator) -> F32:
    """A hollow or a bump: one flank towards the light, the other away from it, and a darker floor."""
    side = min(picture.shape[:2])
    radius = rng.uniform(0.025, 0.1) * side
    depth = _ellipse(picture, place, radius, rng, soft=0.45, rough=0.15)
    dy, dx = np.gradient(depth)
    light = float(rng.uniform(0, math.tau))
    flank = (dx * math.cos(light) + dy * math.sin(light)) * radius
    flank /= max(float(np.abs(flank).max()), 1e-6)
    levels = float(rng.uniform(30, 90))
    return _shaded(picture, levels * (flank - float(rng.uniform(0, 0.5)) * depth))


def _stain(picture: U8, place: tuple[float, float], rng: np.random.Generator) -> F32:
    """A blot with an irregular edge, darker or lighter; tinted where the camera sees colour."""
    side = min(picture.shape[:2])
    blot = _ellipse(picture, place, rng.uniform(0.03, 0.14) * side, rng, soft=rng.uniform(0.08, 0.3), rough=0.6)
    levels = np.full(3, _away(picture, place, rng, 25, 90), np.float32)
    if np.ptp(picture.astype(np.int16), axis=2).mean() > _GRAY:
        levels = levels + rng.normal(0, 9, 3).astype(np.float32)
    return np.asarray(picture + blot[:, :, None] * levels, np.float32)


def _cutpaste(picture: U8, place: tuple[float, float], rng: np.random.Generator) -> F32:
    height, width = picture.shape[:2]
    side = min(height, width)
    if rng.random() < 0.5:
        size = np.array([rng.uniform(0.1, 0.25), rng.uniform(0.015, 0.07)]) * side
    else:
        area, aspect = rng.uniform(0.005, 0.06) * side**2, math.exp(rng.uniform(-1.2, 1.2))
        size = np.array([math.sqrt(area * aspect), math.sqrt(area / aspect)])
    box = ((float(place[0]), float(place[1])), (float(size[0]), float(size[1])), float(rng.uniform(-45, 45)))
    stencil = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(stencil, np.rint(cv2.boxPoints(box)).astype(np.int32), 1, cv2.LINE_AA)
    source = rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height))
    turn = carried((float(source[0]), float(source[1])), place, float(rng.uniform(0, 360)))
    moved = cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101).astype(np.float32)
    moved = moved * float(rng.uniform(0.8, 1.2)) + float(rng.uniform(-15, 15))
    alpha = _blurred(stencil.astype(np.float32), 0.6)[:, :, None]
    return np.asarray(picture + alpha * (moved - picture), np.float32)


_DRAW: dict[Kind, Callable[[U8, tuple[float, float], np.random.Generator], F32]] = {
    "scratch": _scratch,
    "dent": _dent,
    "stain": _stain,
    "cutpaste": _cutpaste,
}


def _ellipse(
    picture: U8, place: tuple[float, float], radius: float, rng: np.random.Generator, soft: float, rough: float
) -> F32:
    """1 inside a random ellipse, 0 outside; `soft` and `rough` say how its edge is, as shares of the radius."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x - place[0], y - place[1]
    angle, stretch = rng.uniform(0, math.pi), math.exp(rng.uniform(-0.45, 0.45))
    u = (x * math.cos(angle) + y * math.sin(angle)) / (radius * stretch)
    v = (y * math.cos(angle) - x * math.sin(angle)) * stretch / radius
    wobble = _blurred(rng.standard_normal((height, width), dtype=np.float32), max(1.0, 0.35 * radius))
    distance = np.hypot(u, v) + rough * wobble / max(float(wobble.std()), 1e-6) * 0.4
    return np.asarray(1 / (1 + np.exp(((distance - 1) / (0.5 * soft)).clip(-30, 30))), np.float32)


def _away(picture: U8, place: tuple[float, float], rng: np.random.Generator, least: float, most: float) -> float:
    """Levels to add that are visible there: dark on bright and bright on dark, at random in between."""
    here = float(picture[int(place[1]), int(place[0])].mean())
    darker = rng.random() < (here - 40) / 130
    return float(rng.uniform(least, most)) * (-1 if darker else 1)


def _shaded(picture: U8, levels: npt.NDArray[np.floating[Any]]) -> F32:
    return np.asarray(picture + levels[:, :, None], np.float32)


def _blurred(values: F32, sigma: float) -> F32:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), np.float32)
