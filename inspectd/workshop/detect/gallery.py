"""The pictures to look at first, with the boxes that are there and those that were found."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from inspectd.frame import U8
from inspectd.model.manifest import Manifest, Thresholds
from inspectd.verdict.decide import Decision
from inspectd.verdict.schema import BoxScore
from inspectd.workshop.detect.augment import Edges
from inspectd.workshop.detect.data import BoxedPictures
from inspectd.workshop.detect.figures import ErrorKind, JudgedPicture
from inspectd.workshop.detect.judged import JudgedDetector, covered, edges_of
from inspectd.workshop.evaluation.judged import verdict_of

_ORDER: tuple[ErrorKind, ...] = ("escape", "false_reject", "missed", "wrong_boxes", "right")
_SIDE = 320  # pixels of the longer side as shown
_TRUTH, _FOUND = (20, 160, 80), (225, 50, 40)  # RGB
_AT_MOST_RIGHT = 6


def worst_detections(
    judged: JudgedDetector, names: Sequence[str], pictures: BoxedPictures, manifest: Manifest, at_most: int
) -> list[tuple[int, JudgedPicture]]:
    """(row, picture), the gravest first: escapes, false rejects, defects that did not fail, wrong boxes; then
    a few right ones that were least sure. Within a kind those with the most wrong come first.
    """
    found = []
    for row, decision in enumerate(judged.decisions):
        truth = _labelled(pictures, row, manifest)
        firm = [box for box in decision.boxes if reaches(box, manifest.thresholds)]
        kind, wrong = _kind(decision, truth, firm, pictures.edges[row])
        found.append((_ORDER.index(kind), -wrong, decision.score or 0.0, row, truth))
    found.sort(key=lambda entry: entry[:4])
    errors = [entry for entry in found if _ORDER[entry[0]] != "right"][:at_most]
    right = [entry for entry in found if _ORDER[entry[0]] == "right"]
    chosen = errors + right[: min(_AT_MOST_RIGHT, at_most - len(errors))]
    return [
        (row, _described(names[row], _ORDER[kind], judged.decisions[row], truth)) for kind, _, _, row, truth in chosen
    ]


def reaches(box: BoxScore, thresholds: Thresholds) -> bool:
    """True of a box that failed its picture, and did not merely stand against a pass."""
    return box.score >= thresholds.fail.get(box.label, thresholds.fail_default)


def _kind(
    decision: Decision, truth: Sequence[BoxScore], firm: Sequence[BoxScore], edges: Edges
) -> tuple[ErrorKind, int]:
    """What is wrong with a picture, and how many boxes are; only `firm` ones count as found."""
    verdict = decision.verdict
    unlabelled = sum(not covered(edges_of([box]), truth).all() for box in firm)
    missed = len(truth) - int(covered(edges, firm).sum())
    if truth and verdict == "pass":
        return "escape", len(truth)
    if not truth and verdict != "pass":
        return "false_reject", len(decision.boxes)
    if truth and verdict != "fail":
        return "missed", missed
    return ("wrong_boxes" if missed + unlabelled else "right"), missed + unlabelled


def _labelled(pictures: BoxedPictures, row: int, manifest: Manifest) -> tuple[BoxScore, ...]:
    return tuple(
        BoxScore(label=manifest.classes[label].name, score=1.0, box=(left, top, right - left, bottom - top))
        for label, (left, top, right, bottom) in zip(pictures.labels[row], pictures.edges[row].tolist(), strict=True)
    )


def _described(name: str, kind: ErrorKind, decision: Decision, truth: tuple[BoxScore, ...]) -> JudgedPicture:
    return JudgedPicture(
        name=name,
        kind=kind,
        truth=truth,
        verdict=verdict_of(decision),
        label=decision.label,
        score=decision.score,
        boxes=decision.boxes,
    )


def drawn(pixels: U8, boxes: Sequence[BoxScore], thresholds: Thresholds | None) -> U8:
    """The picture, uint8 [H, W, 3], at the page's size, with boxes drawn into it: green where there are no
    thresholds, for these are the labels; else red, with their scores, and thin below their threshold.
    """
    scale = _SIDE / max(pixels.shape[:2])
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    picture = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    colour = _TRUTH if thresholds is None else _FOUND
    for box in reversed(boxes):  # the strongest on top
        left, top, width, height = (value * scale for value in box.box)
        corner, opposite = (round(left), round(top)), (round(left + width), round(top + height))
        if thresholds is not None and not reaches(box, thresholds):
            cv2.rectangle(picture, corner, opposite, colour, 1)
            continue
        cv2.rectangle(picture, corner, opposite, colour, 2)
        _write(picture, box.label if thresholds is None else f"{box.label} {box.score:.2f}", corner, colour)
    return picture


def _write(picture: U8, words: str, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Words on a ground of their own above a corner, moved into the picture where they would leave it."""
    (width, height), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
    x, y = max(0, min(corner[0], picture.shape[1] - width - 3)), max(corner[1], height + 6)
    cv2.rectangle(picture, (x, y - height - 5), (x + width + 3, y), colour, cv2.FILLED)
    cv2.putText(picture, words, (x + 2, y - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
