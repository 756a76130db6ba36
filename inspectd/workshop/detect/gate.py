"""The gate of a detector's copy: it must find what the network that was trained finds, or it does not ship."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from inspectd.engine.base import Scores
from inspectd.model.manifest import Copy, Manifest
from inspectd.workshop.detect.data import BoxedPictures
from inspectd.workshop.detect.operating import picture_figures
from inspectd.workshop.detect.precision import average_precision

MAX_MAP_LOSS = 0.01
"""mAP@0.5 that a copy may lose against torch in float32."""


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What the gate found of one copy on validation pictures. `problems` is empty where it may ship."""

    copy: Copy
    figures: dict[str, Any]
    problems: tuple[str, ...]
    detections: Scores
    float32: bool = False  # it ran with float32 where the processor would use bf16

    @property
    def passed(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        return {**self.figures, "problems": list(self.problems), "passed": self.passed}

    def metrics(self, pictures: int) -> dict[str, Any]:
        """What the manifest says of the copy itself."""
        return {"pictures": pictures, **{k: v for k, v in self.figures.items() if k != "agreement"}}


def judge_detector_copy(
    copy: Copy, eager: Scores, given: Scores, manifest: Manifest, truth: BoxedPictures
) -> CopyReport:
    """Hold a copy's detections against torch's, both float32 [N, max_detections, 6], on these N pictures.

    Refused are scores that are no numbers, more than `MAX_MAP_LOSS` of mAP@0.5 lost, any picture more that
    wrongly passes, and a class of which more pictures wrongly pass.
    """
    if not np.isfinite(given).all():
        return CopyReport(copy, {}, ("some detections are no numbers",), given)
    own, theirs = (average_precision(truth, found, manifest.classes) for found in (eager, given))
    before, after = (picture_figures(manifest, found, truth) for found in (eager, given))
    problems = []
    if (lost := (own.map50 or 0.0) - (theirs.map50 or 0.0)) > MAX_MAP_LOSS:
        problems.append(f"mAP@0.5 loses {100 * lost:.1f} points, {100 * MAX_MAP_LOSS:.1f} are allowed")
    if after["escapes"] > before["escapes"]:
        problems.append(f"{after['escapes']} pictures would wrongly pass, {before['escapes']} with torch")
    for name, escaped in after["escaped_by_class"].items():
        if escaped > before["escaped_by_class"][name]:
            problems.append(f"{escaped} pictures with {name} would wrongly pass")
    figures = {**theirs.as_json(), "operating_point": after, "agreement": agreement(eager, given)}
    return CopyReport(copy, figures, tuple(problems), given)


def agreement(eager: Scores, given: Scores, least_score: float = 0.3) -> dict[str, Any]:
    """How alike the boxes of two engines are: each strong one of the first with its best partner in the second.

    `found`: share of boxes from `least_score` on that have a partner of their class with an overlap over a half;
    of these the largest differences in any edge (pixels) and in score.
    """
    strong = found = 0
    edge = score = 0.0
    for own, theirs in zip(eager, given, strict=True):
        for row in own[(own[:, 4] >= least_score) & (own[:, 5] > 0)]:
            strong += 1
            partners = theirs[theirs[:, 5] == row[5]]
            overlaps = overlap(row, partners)
            if not len(partners) or overlaps.max() <= 0.5:
                continue
            partner = partners[overlaps.argmax()]
            found += 1
            edge = max(edge, float(np.abs(partner[:4] - row[:4]).max()))
            score = max(score, float(abs(partner[4] - row[4])))
    share = found / strong if strong else 1.0
    return {"found": round(share, 4), "edge_difference": round(edge, 3), "score_difference": round(score, 4)}


def overlap(row: Scores, others: Scores) -> Scores:
    """IoU of one box with [n] others, float32 [n]."""
    sides = np.minimum(row[2:4], others[:, 2:4]) - np.maximum(row[:2], others[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    areas = (others[:, 2:4] - others[:, :2]).prod(axis=1) + (row[2:4] - row[:2]).prod()
    ratio: Scores = shared / np.maximum(areas - shared, 1e-9)
    return ratio
