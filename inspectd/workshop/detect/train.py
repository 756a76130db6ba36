"""Training a detector: from pictures with boxes to a gated bundle.

read -> anchors -> fit -> settle -> gate the copies -> thresholds -> bundle, in place at once
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch

from inspectd import __version__
from inspectd.engine.base import Scores
from inspectd.errors import UsageError
from inspectd.frame import U8
from inspectd.model.bundle import FORMAT_VERSION, WEIGHTS, Bundle, write_manifest
from inspectd.model.data import Sample, Split
from inspectd.model.manifest import DetectorSpec, Manifest
from inspectd.model.network import save_weights
from inspectd.model.preprocess import PreprocessSpec
from inspectd.progress import Tell
from inspectd.workshop.copies import calibration_pictures, float32_copies
from inspectd.workshop.detect.anchors import USUAL, Anchors, choose_anchors
from inspectd.workshop.detect.data import BoxedDataset, BoxedPictures, load_boxes, open_boxes
from inspectd.workshop.detect.export import make_detector_copies
from inspectd.workshop.detect.gate import CopyReport
from inspectd.workshop.detect.network import Detector, build_detector, load_body
from inspectd.workshop.detect.operating import choose_detector_thresholds, picture_figures, warn_of_escapes
from inspectd.workshop.detect.precision import average_precision
from inspectd.workshop.detect.task import DetectTask, predict
from inspectd.workshop.distributed import World
from inspectd.workshop.loop import EpochRow
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.provenance import write_provenance
from inspectd.workshop.training import (
    Attempt,
    as_json,
    fit_network,
    log_start,
    refuse_uneven,
    start_as_identity,
    train_bundle,
)

log = structlog.get_logger(__name__)

_SETTLE_BATCH = 16
_SMALL_SIDE = 4.0  # pixels in the network's input, below which a box is as good as unseen
_FINISH_S = 120.0  # for quantising and judging


@dataclass(frozen=True, slots=True)
class DetectorWorkpiece:
    """What all steps of one training share."""

    dataset: BoxedDataset
    pictures: dict[Split, BoxedPictures]  # "train", "val"
    draft: Manifest  # classes, sizes and anchors; nothing that training finds out
    options: TrainOptions
    device: torch.device
    world: World

    @property
    def fingerprint(self) -> str:
        return self.dataset.fingerprint


def train_detector(
    data: Path,
    bundle: Path,
    options: TrainOptions,
    tell: Tell | None = None,
    *,
    resume: bool = False,
    restart: bool = False,
    on_epoch: EpochRow | None = None,
) -> Bundle | None:
    """Train a Faster R-CNN on `data` and write it to `bundle`; see `train_bundle`.

    Raises:
        DataError: pictures or labels cannot be used, or `bundle` holds something else.
        UsageError: the options make no sense here, or an unfinished run is in the way.
    """
    return train_bundle(
        data,
        bundle,
        lambda world, told: prepare_detector(data, options, world, told),
        _fit,
        _fill,
        tell,
        resume=resume,
        restart=restart,
        on_epoch=on_epoch,
    )


def prepare_detector(data: Path, options: TrainOptions, world: World, tell: Tell) -> DetectorWorkpiece:
    """Read pictures and boxes, and choose the anchors.

    Raises:
        DataError: pictures or labels cannot be used.
        UsageError: the options make no sense for a detector.
    """
    if options.stage_plan == "head":
        raise UsageError("train: --stages head is for classifiers; a detector's boxes need more than the last layer")
    if options.threads:
        torch.set_num_threads(options.threads)
    dataset = open_boxes(
        data,
        seed=options.seed,
        val_fraction=options.val_fraction,
        groups=options.group_by,
        on_progress=lambda done, total: tell("checking pictures", done, total),
    )
    spec = PreprocessSpec(width=options.size, height=options.size)
    pictures: dict[Split, BoxedPictures] = {
        split: load_boxes(dataset.splits[split], spec, lambda done, total: tell("reading pictures", done, total))
        for split in ("train", "val")
    }
    refuse_uneven(options, len(pictures["train"]), world)
    edges = np.concatenate(pictures["train"].edges).astype(np.float64)
    _warn_of_small_boxes(edges, options.size)
    anchors = choose_anchors(edges)
    fits = {name: some.fit(edges, spec.width, spec.height) for name, some in (("chosen", anchors), ("usual", USUAL))}
    log.info("anchors", strides=anchors.strides, sizes=anchors.sizes, ratios=anchors.ratios, **fits)
    draft = _draft(dataset, spec, anchors, fits, options)
    return DetectorWorkpiece(dataset, pictures, draft, options, world.device(options.device), world)


def _warn_of_small_boxes(edges: np.ndarray[Any, np.dtype[np.float64]], size: int) -> None:
    sides = np.minimum(edges[:, 2] - edges[:, 0], edges[:, 3] - edges[:, 1])
    if small := int((sides < _SMALL_SIDE).sum()):
        log.warning(
            "small_boxes",
            count=small,
            of=len(edges),
            note=f"narrower than {_SMALL_SIDE:g} pixels at --size {size}; use a larger one",
        )


def _draft(
    dataset: BoxedDataset, spec: PreprocessSpec, anchors: Anchors, fits: dict[str, Any], options: TrainOptions
) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        task="detect",
        architecture="fasterrcnn_resnet18_fpn",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        created_by=f"inspectd {__version__}, torch {torch.__version__}",
        classes=dataset.classes,
        preprocess=spec,
        detector=DetectorSpec.model_validate(
            {"strides": anchors.strides, "anchor_sizes": anchors.sizes, "aspect_ratios": anchors.ratios}
        ),
        training={
            "data_sha256": dataset.fingerprint,
            "pictures": {split: len(dataset.splits[split]) for split in dataset.splits},
            "boxes": {split: dataset.counts(split) for split in dataset.splits},
            "anchors": fits,
            "options": as_json(options),
        },
        files={},
    )


# -- fitting ------------------------------------------------------------------------------------------


def _fit(piece: DetectorWorkpiece, attempt: Attempt) -> Detector:
    """The trained network, on the CPU, in eval mode."""
    options = piece.options
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        network = build_detector(piece.draft)
        if options.from_scratch:
            start_as_identity(network)
        load_body(network, options.weights)
    network.to(piece.device).to(memory_format=torch.channels_last)
    log_start(piece, len(piece.pictures["train"]))
    task, body = detect_task(piece), network.backbone
    fit_network(network, task, piece, attempt, finish_s=_FINISH_S, settled=body, settle_batch=_SETTLE_BATCH)
    network.to("cpu").eval()
    return network


def detect_task(piece: DetectorWorkpiece) -> DetectTask:
    """The task that the loop runs."""
    draft = piece.draft
    assert draft.detector is not None, "a detector's manifest"
    train, val = piece.pictures["train"], piece.pictures["val"]
    return DetectTask(train, val, draft.classes, draft.preprocess, draft.detector, piece.options, piece.device)


# -- the bundle ---------------------------------------------------------------------------------------


def _fill(work: Path, network: Detector, piece: DetectorWorkpiece, trained_s: float, tell: Tell) -> None:
    """Write everything that belongs to the bundle into `work`, the copies only if their gate lets them pass."""
    manifest, val, options = piece.draft, piece.pictures["val"], piece.options
    assert manifest.detector is not None, "a detector's manifest"
    save_weights(network, work / WEIGHTS)
    write_provenance(work, _made_from(piece))
    tell("writing the bundle", 0, 3)
    eager = predict(network, val.pixels, manifest.preprocess, manifest.detector, torch.device("cpu"))
    thresholds = choose_detector_thresholds(manifest, eager, val.labels, options.max_false_rejects)
    manifest = manifest.model_copy(update={"thresholds": thresholds})
    tell("writing the bundle", 1, 3, "copies")
    calibration = calibration_pictures(piece.pictures["train"].pixels, options.seed) if options.int8 else None
    reports = make_detector_copies(network, manifest, work, eager, val, calibration)
    for report in reports:
        if not report.passed:
            log.warning("copy_left_out", copy=report.copy, why="; ".join(report.problems))
    tell("writing the bundle", 2, 3, "thresholds")
    training = {**manifest.training, "seconds": round(trained_s, 1)}
    float32 = float32_copies((), {report.copy: report.float32 for report in reports if report.passed})
    manifest = manifest.model_copy(update={"training": training, "float32": float32})
    write_manifest(work, _calibrated(manifest, eager, reports, val, options.max_false_rejects))
    tell("writing the bundle", 3, 3)


def _made_from(piece: DetectorWorkpiece) -> Iterator[tuple[Split, Sample, U8]]:
    for split, pictures in piece.pictures.items():
        samples = [boxed.sample for boxed in piece.dataset.splits[split]]
        yield from zip(repeat(split), samples, pictures.pixels, strict=False)


def _calibrated(
    manifest: Manifest, eager: Scores, reports: list[CopyReport], val: BoxedPictures, max_false_rejects: float
) -> Manifest:
    """Thresholds from validation for the worst of the copies that ship, and what they give; aloud if defects pass."""
    found: dict[str, Scores] = {
        "eager": eager,
        **{report.copy: report.detections for report in reports if report.passed},
    }
    stacked, labels = np.concatenate(list(found.values())), val.labels * len(found)
    thresholds = choose_detector_thresholds(manifest, stacked, labels, max_false_rejects)
    final = manifest.model_copy(update={"thresholds": thresholds})
    metrics: dict[str, Any] = {"split": "val", "gate": {report.copy: report.as_json() for report in reports}}
    for name, detections in found.items():
        metrics[name] = {
            "pictures": len(val),
            **average_precision(val, detections, final.classes).as_json(),
            "operating_point": picture_figures(final, detections, val),
        }
    final = final.model_copy(update={"metrics": metrics})
    warn_of_escapes(final, max_false_rejects)
    return final
