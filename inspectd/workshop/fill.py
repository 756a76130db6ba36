"""More training pictures for defect classes that have few: simulated, from good parts of the training split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from inspectd.frame import U8
from inspectd.model.data import Pictures
from inspectd.model.manifest import ClassSpec
from inspectd.workshop.defects import TRIES, Mask, carried, kind_for, part_of, place_on, seen, simulate

_GOOD_AT_MOST = 200  # pictures among which similar ones are looked for, or about
_SIMILAR = 6  # of them
_COARSE = 32  # pixels a side at which they are compared
_BEYOND = 8.0  # levels beyond what good pictures show, from which on a pixel may be the defect
_LARGEST = 0.2  # of the picture that one patch may cover


@dataclass(frozen=True, slots=True)
class Filled:
    """Training pictures with simulated ones behind the real ones.

    `simulated`: bool [N], which they are. `added`: how many per class name. `note`: one line on it for people, or
    empty where there was nothing to do.
    """

    pictures: Pictures
    simulated: npt.NDArray[np.bool_]
    added: dict[str, int]
    note: str


def fill_small_classes(
    pictures: Pictures, classes: Sequence[ClassSpec], minimum: int, rng: np.random.Generator
) -> Filled:
    """Bring every defect class up to `minimum` pictures. `pictures` are those to train with, and no others.

    What is drawn follows from the class's name (`defects.kind_for`); where that says nothing, patches of its own
    pictures, where they show what no good one does, are put on good ones.
    """
    counts = np.bincount(pictures.labels, minlength=len(classes))
    lacking = {
        label: minimum - int(counts[label])
        for label, spec in enumerate(classes)
        if spec.role == "defect" and counts[label] < minimum
    }
    nothing = Filled(pictures, np.zeros(len(pictures), np.bool_), {}, "")
    if not lacking:
        return nothing
    good = np.flatnonzero([classes[label].role == "ok" for label in pictures.labels])
    if not len(good):
        names = ", ".join(classes[label].name for label in lacking)
        return Filled(
            pictures, nothing.simulated, {}, f"no good pictures to draw defects on, so none are added to {names}"
        )
    more, labels = [pictures.pixels], [pictures.labels]
    added: dict[str, int] = {}
    for label, count in lacking.items():
        name = classes[label].name
        own = pictures.pixels[pictures.labels == label]
        ground = pictures.pixels[rng.choice(good, count)]
        if (kind := kind_for(name)) == "cutpaste" and len(own):
            drawn, masks = paste_patches(own, ground, pictures.pixels[good[:: max(1, len(good) // _GOOD_AT_MOST)]], rng)
        else:
            drawn, masks = simulate(ground, kind, rng)
        drawn = drawn[masks.any(axis=(1, 2))]
        more.append(drawn)
        labels.append(np.full(len(drawn), label, np.int64))
        added[name] = len(drawn)
    filled = Pictures(np.concatenate(more), np.concatenate(labels))
    note = ", ".join(f"{name} {count}" for name, count in added.items())
    return Filled(filled, np.arange(len(filled)) >= len(pictures), added, f"simulated pictures to train with: {note}")


def paste_patches(own: U8, ground: U8, good: U8, rng: np.random.Generator) -> tuple[U8, npt.NDArray[np.bool_]]:
    """Put the odd part of a random picture of `own` (uint8 [M, H, W, 3]) on each of `ground` (uint8 [N, H, W, 3]).

    Args:
        good: good pictures, uint8 [K, H, W, 3], to tell what is odd.

    Returns:
        The pictures and where they changed, bool [N, H, W]; nowhere if no patch is seen on it.
    """
    stencils = [_odd_part(picture, good) for picture in own]
    drawn, masks = ground.copy(), np.zeros(ground.shape[:3], np.bool_)
    for index, target in enumerate(ground):
        for _ in range(TRIES):
            pick = int(rng.integers(len(own)))
            result = _paste(own[pick], stencils[pick], target, rng)
            if (mask := seen(result, target)).any():
                drawn[index], masks[index] = result, mask
                break
    return drawn, masks


def _odd_part(picture: U8, good: U8) -> Mask:
    """The largest spot that similar good pictures do not show there, a little widened; else a disc about the oddest."""
    height, width = picture.shape[:2]
    side = min(height, width)
    low, high = _range_of_similar(picture, good)
    beyond = np.maximum(cv2.subtract(picture, high), cv2.subtract(low, picture)).max(axis=2).astype(np.float32)
    beyond = cv2.GaussianBlur(beyond, (0, 0), max(0.8, 0.005 * side))
    count, spots, figures, _ = cv2.connectedComponentsWithStats((beyond > _BEYOND).astype(np.uint8))
    if count > 1:
        spot = 1 + int(np.argmax([float(beyond[spots == spot].sum()) for spot in range(1, count)]))
        if figures[spot, cv2.CC_STAT_AREA] <= _LARGEST * height * width:
            reach = max(3, side // 40 * 2 + 1)
            widened = cv2.dilate((spots == spot).astype(np.uint8), np.ones((reach, reach), np.uint8))
            return np.asarray(widened > 0)
    smooth = cv2.GaussianBlur(beyond, (0, 0), 0.08 * side)
    y, x = np.unravel_index(int(smooth.argmax()), smooth.shape)
    disc = np.zeros((height, width), np.uint8)
    cv2.circle(disc, (int(x), int(y)), max(3, round(0.14 * side)), 1, -1)
    return np.asarray(disc > 0)


def _range_of_similar(picture: U8, good: U8) -> tuple[U8, U8]:
    """The darkest and the brightest that the good pictures most like it are about each pixel, uint8 [H, W, 3] each.

    Most alike, as parts do not lie still; about, as they lie a pixel or two from where they lay.
    """
    coarse = np.stack([cv2.resize(p, (_COARSE, _COARSE), interpolation=cv2.INTER_AREA) for p in (picture, *good)])
    apart = np.abs(coarse[1:].astype(np.int16) - coarse[0]).mean(axis=(1, 2, 3))
    similar = good[np.argsort(apart, kind="stable")[:_SIMILAR]]
    reach = np.ones((max(3, min(picture.shape[:2]) // 90 * 2 + 1),) * 2, np.uint8)  # 5 at 224
    low, high = cv2.erode(similar.min(axis=0), reach), cv2.dilate(similar.max(axis=0), reach)
    return np.asarray(low, np.uint8), np.asarray(high, np.uint8)


def _paste(source: U8, stencil: Mask, target: U8, rng: np.random.Generator) -> U8:
    """The stencil's pixels, turned, scaled and moved a little, at the brightness of where they come to lie."""
    height, width = target.shape[:2]
    ys, xs = np.nonzero(stencil)
    x, y = float(xs.mean()), float(ys.mean())
    goal = (x + float(rng.normal(0, 0.05 * width)), y + float(rng.normal(0, 0.05 * height)))
    if rng.random() < 0.5:  # not about where the defect occurs, but anywhere on the part
        goal = place_on(part_of(target), rng)
    turn = carried((x, y), goal, float(rng.uniform(-20, 20)), math.exp(rng.uniform(-0.2, 0.2)))
    moved = cv2.warpAffine(source, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101).astype(np.float32)
    mask = cv2.warpAffine(stencil.astype(np.uint8), turn, (width, height)) > 0
    rim = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(np.bool_) & ~mask
    if rim.any():
        moved = moved + (target[rim].mean(axis=0) - moved[rim].mean(axis=0))
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(0.6, 0.006 * min(height, width)))[:, :, None]
    blended = target + soft * (moved - target)
    return blended.clip(0, 255).astype(np.uint8)
