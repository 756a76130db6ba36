"""What each copy of a detector says of pictures, driven as the daemon does, and what that comes to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from inspectd.engine.base import Engine, Scores, Slot
from inspectd.engine.select import make_engine
from inspectd.errors import EngineError
from inspectd.frame import U8
from inspectd.model.bundle import WEIGHTS, Bundle
from inspectd.model.manifest import Manifest
from inspectd.model.network import load_weights
from inspectd.progress import Tell
from inspectd.verdict.decide import Decision
from inspectd.verdict.schema import BoxScore
from inspectd.workshop.detect.augment import Edges
from inspectd.workshop.detect.data import BoxedPictures
from inspectd.workshop.detect.figures import Agreement, BoxFigures, DetectorCopyFigures
from inspectd.workshop.detect.gate import agreement, overlap
from inspectd.workshop.detect.network import build_detector
from inspectd.workshop.detect.operating import decisions
from inspectd.workshop.detect.precision import Precision, average_precision
from inspectd.workshop.detect.task import predict
from inspectd.workshop.evaluation.judged import Deployment, verdict_figures, verdict_of
from inspectd.workshop.evaluation.statistics import share

EAGER = "torch"
_CHUNK = 32


@dataclass(frozen=True, slots=True)
class JudgedDetector:
    """What one copy says. `detections`: float32 [N, max_detections, 6], NaN where its engine failed."""

    name: str
    runs: str
    detections: Scores
    decisions: tuple[Decision, ...]
    precision: Precision


def judge_detector(
    bundle: Bundle, pictures: BoxedPictures, deployed: Sequence[Deployment], tell: Tell
) -> Iterator[JudgedDetector]:
    """Judge the pictures with torch, where the bundle has weights, and with every copy.

    Raises:
        BundleError: the weights or a copy do not fit the manifest.
        FatalEngineError: a device is gone.
    """
    manifest = bundle.manifest

    def judged(name: str, runs: str, detections: Scores) -> JudgedDetector:
        failed = ~np.isfinite(detections).all(axis=(1, 2))
        sound = detections.copy()
        sound[failed] = -1  # no boxes
        precision = average_precision(pictures, sound, manifest.classes)
        return JudgedDetector(name, runs, detections, tuple(decisions(manifest, detections)), precision)

    if WEIGHTS in manifest.files:
        yield judged(EAGER, "torch f32, eager: the measure of every copy", _eager(bundle, pictures.pixels, tell))
    for copy in deployed:
        with closing(make_engine(copy.bundle, copy.config)) as engine:
            found = engine_detections(engine, pictures.pixels, manifest.output_shape, tell, f"judging: {copy.name}")
            runs = f"{engine.info.name} {engine.info.precision} on {engine.info.device}"
        yield judged(copy.name, runs, found)


def _eager(bundle: Bundle, pixels: U8, tell: Tell) -> Scores:
    manifest = bundle.manifest
    assert manifest.detector is not None, "a detector's manifest"
    network = build_detector(manifest)
    load_weights(network, bundle.path / WEIGHTS)
    parts = []
    for start in range(0, len(pixels), _CHUNK):
        chunk = pixels[start : start + _CHUNK]
        parts.append(predict(network, chunk, manifest.preprocess, manifest.detector, torch.device("cpu")))
        tell(f"judging: {EAGER}", min(start + _CHUNK, len(pixels)), len(pixels))
    return np.concatenate(parts)


def engine_detections(engine: Engine, pixels: U8, shape: tuple[int, ...], tell: Tell, stage: str) -> Scores:
    """uint8 [N, height, width, 3] -> float32 [N, *shape]; NaN for a batch that failed."""
    found = np.full((len(pixels), *shape), np.nan, np.float32)
    memory = engine.allocate(engine.max_batch_size)
    engine.warm_up()
    for start in range(0, len(pixels), len(memory)):
        rows = pixels[start : start + len(memory)]
        memory[: len(rows)] = rows
        engine.submit([Slot(index, memory[index]) for index in range(len(rows))], lambda slots: None)
        try:
            found[start : start + len(rows)] = engine.collect()
        except EngineError:
            if engine.in_flight:
                raise
        tell(stage, start + len(rows), len(pixels))
    return found


def detector_copy_figures(
    judged: JudgedDetector, first: JudgedDetector, pictures: BoxedPictures, manifest: Manifest
) -> DetectorCopyFigures:
    """One copy's figures, and how far it agrees with the first."""
    verdicts = [verdict_of(decision) for decision in judged.decisions]
    own_label = np.array([int(labels[0]) if len(labels) else 0 for labels in pictures.labels], np.int64)
    same, other = judged is first, [verdict_of(decision) for decision in first.decisions]
    return DetectorCopyFigures(
        name=judged.name,
        runs=judged.runs,
        map50=judged.precision.map50,
        map=judged.precision.map,
        classes=tuple(
            BoxFigures(
                name=spec.name,
                boxes=sum(int((labels == label).sum()) for labels in pictures.labels),
                ap50=judged.precision.per_class[spec.name][0],
                ap=judged.precision.per_class[spec.name][1],
                hit=share(*_hits(judged.decisions, pictures, label, spec.name)),
            )
            for label, spec in enumerate(manifest.classes)
            if label
        ),
        verdicts=verdict_figures(verdicts, own_label, manifest),
        same_verdict=None if same else share(sum(map(str.__eq__, verdicts, other)), len(verdicts)),
        agreement=None if same else Agreement.model_validate(agreement(first.detections, judged.detections)),
    )


def _hits(found: Sequence[Decision], pictures: BoxedPictures, label: int, name: str) -> tuple[int, int]:
    """Boxes of a class that a published one overlaps by half, and how many there are."""
    hit = there = 0
    for decision, edges, labels in zip(found, pictures.edges, pictures.labels, strict=True):
        own = edges[labels == label]
        there += len(own)
        hit += int(covered(own, [box for box in decision.boxes if box.label == name]).sum())
    return hit, there


def covered(edges: Edges, boxes: Sequence[BoxScore]) -> npt.NDArray[np.bool_]:
    """Which of these boxes, float32 [n, 4], one of the published ones overlaps by half."""
    others = edges_of(boxes)
    return np.array([bool((overlap(row, others) >= 0.5).any()) for row in edges], np.bool_)


def edges_of(boxes: Sequence[BoxScore]) -> Edges:
    """Left, top, right, bottom of published boxes, float32 [n, 4]."""
    corners = [(x, y, x + width, y + height) for x, y, width, height in (box.box for box in boxes)]
    return np.array(corners, np.float32).reshape(-1, 4)
