"""Anchors chosen from the data: the boxes that a detector starts from should look like those it must find.

k-means with the overlap (IoU) as its measure, as in Redmon and Farhadi 2017, "YOLO9000", section 2; but the
centres are a grid of sizes times aspect ratios, because that is what a region proposal network has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

F64 = npt.NDArray[np.float64]

STRIDES = (4, 8, 16, 32)
_SIZES_PER_LEVEL = 2
_RATIOS = 3
_SIZE_PER_STRIDE = 4  # a level has the boxes from 4 to 8 times its stride; the outer ones all beyond, too
_FINE_SHARE = 0.1  # of boxes below the range of stride 8: from here on a finer level is worth its cost
_LEARNT_FROM = 10  # boxes in a level's range; with fewer its sizes are the usual ones
_ROUNDS = 20
_LEAST_SIZE = 1.0  # pixels, however small the boxes are
_LEAST, _MOST = 0.2, 5.0  # aspect ratios; beyond them no grid has anchors that still overlap by half
_OVERLAP_CHUNK = 256  # boxes whose overlaps with every anchor are in memory at once

USUAL_SIZES, USUAL_RATIOS = (32.0, 64.0, 128.0, 256.0, 512.0), (0.5, 1.0, 2.0)
"""torchvision's defaults, at strides 4, 8, 16, 32 and 64: what ours are compared with."""


@dataclass(frozen=True, slots=True)
class Anchors:
    """Sizes (square root of the area, pixels) per level, and aspect ratios (height over width) of all."""

    strides: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]

    def fit(self, edges: F64, width: int, height: int) -> dict[str, Any]:
        """How well their grid covers these boxes, [N, 4] in a picture of this size: mean best IoU, recall at 0.5."""
        best = best_overlaps(self, edges, width, height)
        return {"mean_best_iou": round(float(best.mean()), 4), "recall_at_0.5": round(float((best >= 0.5).mean()), 4)}


USUAL = Anchors((4, 8, 16, 32, 64), tuple((size,) for size in USUAL_SIZES), USUAL_RATIOS)


def choose_anchors(edges: F64) -> Anchors:
    """Anchors for these boxes, float64 [N, 4] in network-input pixels, N at least 1."""
    width, height = edges[:, 2] - edges[:, 0], edges[:, 3] - edges[:, 1]
    sizes, ratios = np.maximum(np.sqrt(width * height), _LEAST_SIZE), np.clip(height / width, _LEAST, _MOST)
    fine = (sizes < _SIZE_PER_STRIDE * STRIDES[1]).mean() >= _FINE_SHARE
    strides = STRIDES if fine else STRIDES[1:]
    level = np.clip(np.floor(np.log2(sizes / _SIZE_PER_STRIDE)), np.log2(strides[0]), np.log2(strides[-1]))
    first_sizes = np.stack([_level_sizes(sizes[level == np.log2(stride)], stride) for stride in strides])
    first_ratios = np.quantile(ratios, (np.arange(_RATIOS) + 0.5) / _RATIOS)
    grid_sizes, grid_ratios = _refined(sizes, ratios, first_sizes, first_ratios)
    spread = np.unique(grid_ratios.round(2))
    return Anchors(
        strides,
        tuple(tuple(np.sort(row).round(1).tolist()) for row in grid_sizes),
        tuple(spread.tolist()),
    )


def _level_sizes(sizes: F64, stride: int) -> F64:
    if len(sizes) < _LEARNT_FROM:
        steps = (np.arange(_SIZES_PER_LEVEL) + 0.5) / _SIZES_PER_LEVEL
        return np.asarray(_SIZE_PER_STRIDE * stride * 2**steps)
    return np.quantile(sizes, (np.arange(_SIZES_PER_LEVEL) + 0.5) / _SIZES_PER_LEVEL)


def _refined(sizes: F64, ratios: F64, grid_sizes: F64, grid_ratios: F64) -> tuple[F64, F64]:
    """Move each size and ratio to the geometric mean of the boxes that overlap best with one of its anchors."""
    flat = grid_sizes.reshape(-1).copy()
    for _ in range(_ROUNDS):
        overlap = _shape_overlap(sizes, ratios, flat, grid_ratios)  # [N, sizes, ratios]
        best = overlap.reshape(len(sizes), -1).argmax(axis=1)
        of_size, of_ratio = np.divmod(best, len(grid_ratios))
        moved_sizes = _centres(sizes, of_size, flat)
        moved_ratios = _centres(ratios, of_ratio, grid_ratios)
        if np.allclose(moved_sizes, flat) and np.allclose(moved_ratios, grid_ratios):
            break
        flat, grid_ratios = moved_sizes, moved_ratios
    return np.sort(flat).reshape(grid_sizes.shape), np.sort(grid_ratios)


def _centres(values: F64, cluster: npt.NDArray[np.int64], before: F64) -> F64:
    counts = np.bincount(cluster, minlength=len(before))
    sums = np.bincount(cluster, np.log(values), minlength=len(before))
    # A centre that few boxes chose stays where it is: it would run after single boxes.
    return np.where(counts >= _LEARNT_FROM, np.exp(sums / np.maximum(counts, 1)), before)


def _shape_overlap(sizes: F64, ratios: F64, grid_sizes: F64, grid_ratios: F64) -> F64:
    """IoU of boxes [N] with anchors of the same centre: [N, sizes, ratios]."""
    width, height = (sizes / np.sqrt(ratios))[:, None, None], (sizes * np.sqrt(ratios))[:, None, None]
    anchor_width = grid_sizes[:, None] / np.sqrt(grid_ratios)
    anchor_height = grid_sizes[:, None] * np.sqrt(grid_ratios)
    shared = np.minimum(width, anchor_width) * np.minimum(height, anchor_height)
    overlap: F64 = shared / (width * height + anchor_width * anchor_height - shared)
    return overlap


def best_overlaps(anchors: Anchors, edges: F64, width: int, height: int) -> F64:
    """The best IoU of each box [N, 4] with any anchor where the network has them, cut at the picture's edge."""
    generator = AnchorGenerator(anchors.sizes, (anchors.ratios,) * len(anchors.sizes))
    features = [torch.zeros(1, 1, -(-height // stride), -(-width // stride)) for stride in anchors.strides]
    placed = generator(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), features)[0]
    boxes = torch.from_numpy(edges.astype(np.float32))
    best: Sequence[torch.Tensor] = [box_iou(part, placed).amax(1) for part in torch.split(boxes, _OVERLAP_CHUNK)]
    result: F64 = torch.cat(list(best)).double().numpy()
    return result
