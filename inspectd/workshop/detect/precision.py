"""How well boxes are found: average precision, computed by faster-coco-eval (COCO's own definition, in C++)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from inspectd.engine.base import Scores
from inspectd.model.manifest import ClassSpec
from inspectd.workshop.detect.data import BoxedPictures

RECALL_STEPS = np.linspace(0, 1, 101)
"""Where COCO reads the precision."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Average precision over all defect classes that have boxes; None where there is none to find."""

    map50: float | None  # at an overlap (IoU) of 0.5
    map: float | None  # mean over overlaps of 0.5, 0.55 … 0.95
    per_class: dict[str, tuple[float | None, float | None]]  # the same two of each
    curves: dict[str, npt.NDArray[np.float64]]  # precision at each of RECALL_STEPS, overlap 0.5

    def as_json(self) -> dict[str, Any]:
        classes = {n: {"ap_50": _rounded(a), "ap": _rounded(b)} for n, (a, b) in self.per_class.items()}
        return {"map_50": _rounded(self.map50), "map": _rounded(self.map), "classes": classes}


def average_precision(truth: BoxedPictures, detections: Scores, classes: Sequence[ClassSpec]) -> Precision:
    """Compare detections, float32 [N, max_detections, 6], with the boxes of the same N pictures."""
    images = [{"id": index + 1, "width": s.shape[1], "height": s.shape[0]} for index, s in enumerate(truth.pixels)]
    names = [spec.name for spec in classes[1:]]
    categories = [{"id": label, "name": name} for label, name in enumerate(names, start=1)]
    boxes = [
        {"image_id": index + 1, "category_id": int(label), "bbox": _xywh(edges), "iscrowd": 0, "area": _area(edges)}
        for index, (own, labels) in enumerate(zip(truth.edges, truth.labels, strict=True))
        for edges, label in zip(own.tolist(), labels, strict=True)
    ]
    found = [
        {"image_id": index + 1, "category_id": int(row[5]), "bbox": _xywh(row[:4]), "score": row[4]}
        for index, rows in enumerate(detections)
        for row in rows[rows[:, 5] > 0].tolist()
    ]
    if not boxes or not found:
        return _nothing_found(truth, classes)
    numbered = [{"id": number + 1, **box} for number, box in enumerate(boxes)]
    reference = COCO({"images": images, "categories": categories, "annotations": numbered})
    judge = COCOeval_faster(reference, reference.loadRes(found), iouType="bbox")
    judge.params.maxDets = [1, 10, detections.shape[1]]
    judge.evaluate()
    judge.accumulate()
    # [overlaps, recall steps, classes, areas, detections]; -1 where a class has no box
    table = np.asarray(judge.eval["precision"])[:, :, :, 0, -1]
    per_class: dict[str, tuple[float | None, float | None]] = {}
    curves = {}
    for column, name in enumerate(names):
        known = table[0, 0, column] >= 0
        per_class[name] = (
            (float(table[0, :, column].mean()), float(table[:, :, column].mean())) if known else (None, None)
        )
        if known:
            curves[name] = table[0, :, column].astype(np.float64)
    return _over_classes(per_class, curves)


def _nothing_found(truth: BoxedPictures, classes: Sequence[ClassSpec]) -> Precision:
    there = {int(label) for labels in truth.labels for label in labels}
    per_class: dict[str, tuple[float | None, float | None]] = {
        spec.name: (0.0, 0.0) if label in there else (None, None) for label, spec in enumerate(classes) if label
    }
    return _over_classes(per_class, {name: np.zeros(101) for name, (ap, _) in per_class.items() if ap is not None})


def _over_classes(
    per_class: dict[str, tuple[float | None, float | None]], curves: dict[str, npt.NDArray[np.float64]]
) -> Precision:
    at_half, at_all = ([pair[i] for pair in per_class.values() if pair[i] is not None] for i in (0, 1))
    return Precision(_mean(at_half), _mean(at_all), per_class, curves)


def _mean(values: Sequence[float | None]) -> float | None:
    return float(np.mean(np.array(values, np.float64))) if values else None


def _xywh(edges: Sequence[float]) -> list[float]:
    left, top, right, bottom = edges
    return [left, top, right - left, bottom - top]


def _area(edges: Sequence[float]) -> float:
    _, _, width, height = _xywh(edges)
    return width * height


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
