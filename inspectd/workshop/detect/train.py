"""Training a detector: from pictures with boxes to a gated bundle.

read -> anchors -> fit -> settle -> gate the copies -> thresholds -> bundle, in place at once
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
from inspectd.model.bundle import FORMAT_VERSION, WEIGHTS, Bundle, DetectorSpec, Manifest, load_bundle, write_manifest
from inspectd.model.data import Sample, Split
from inspectd.model.export import settle_batch_norm
from inspectd.model.network import save_weights
from inspectd.model.preprocess import PreprocessSpec
from inspectd.progress import Tell
from inspectd.workshop.checkpoint import RunFolder
from inspectd.workshop.copies import calibration_pictures, float32_copies
from inspectd.workshop.detect.anchors import USUAL, Anchors, choose_anchors
from inspectd.workshop.detect.data import BoxedDataset, BoxedPictures, load_boxes, open_boxes
from inspectd.workshop.detect.export import make_detector_copies
from inspectd.workshop.detect.gate import CopyReport
from inspectd.workshop.detect.network import Detector, build_detector, load_body
from inspectd.workshop.detect.operating import choose_detector_thresholds, picture_figures
from inspectd.workshop.detect.precision import average_precision
from inspectd.workshop.detect.task import DetectTask, predict
from inspectd.workshop.distributed import World, joined_world
from inspectd.workshop.loop import EpochRow, fit
from inspectd.workshop.numerics import half_precision
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.place import refuse_other_things, replacing
from inspectd.workshop.provenance import write_provenance
from inspectd.workshop.train import settle_unfinished, start_as_identity

log = structlog.get_logger(__name__)

_SETTLE_BATCH = 16
_SMALL_SIDE = 4.0  # pixels in the network's input, below which a box is as good as unseen
_FINISH_SHARE, _FINISH_MOST_S = 0.25, 120.0  # of a time budget, kept for quantising and judging


@dataclass(frozen=True, slots=True)
class DetectorWorkpiece:
    """What all steps of one training share."""

    dataset: BoxedDataset
    pictures: dict[Split, BoxedPictures]  # "train", "val"
    draft: Manifest  # classes, sizes and anchors; nothing that training finds out
    options: TrainOptions
    device: torch.device
    world: World


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
    """Train a Faster R-CNN on `data` and write it to `bundle`, a new directory or one that held a bundle.

    Checkpoints lie in `BUNDLE.run` until the bundle is whole and in its place. The same data, options and
    machine give the same weights, resumed or not. Started by `torchrun`, process 0 alone writes; the
    others return None.

    Raises:
        DataError: pictures or labels cannot be used, or `bundle` holds something else.
        UsageError: the options make no sense here, or an unfinished run is in the way.
    """
    tell = tell or _silent
    started = time.monotonic()
    refuse_other_things(bundle)
    with joined_world() as world:
        piece = prepare_detector(data, options, world, tell if world.main else _silent)
        run = RunFolder.beside(bundle, _identity(piece))
        if world.main:
            settle_unfinished(run, resume=resume, restart=restart)
        network = _fit(piece, run, started, tell if world.main else _silent, on_epoch)
    if not world.main:
        return None
    with replacing(bundle) as work:
        _fill(work, network, piece, time.monotonic() - started, tell)
    run.remove()
    return load_bundle(bundle)


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
    dataset = open_boxes(data, seed=options.seed, val_fraction=options.val_fraction, groups=options.group_by)
    spec = PreprocessSpec(width=options.size, height=options.size)
    pictures: dict[Split, BoxedPictures] = {
        split: load_boxes(dataset.splits[split], spec, lambda done, total: tell("reading pictures", done, total))
        for split in ("train", "val")
    }
    if min(options.batch_size, len(pictures["train"])) % world.size:
        raise UsageError(f"train: --batch-size {options.batch_size} cannot be shared by {world.size} processes")
    edges = np.concatenate(pictures["train"].edges).astype(np.float64)
    _warn_of_small_boxes(edges, options.size)
    anchors = choose_anchors(edges)
    fits = {name: some.fit(edges, spec.width, spec.height) for name, some in (("chosen", anchors), ("usual", USUAL))}
    log.info("anchors", strides=anchors.strides, sizes=anchors.sizes, ratios=anchors.ratios, **fits)
    draft = _draft(dataset, spec, anchors, fits, options)
    return DetectorWorkpiece(dataset, pictures, draft, options, world.device(options.device), world)


def _silent(stage: str, done: int, total: int, message: str = "") -> None:
    """Nobody is told."""


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
    given = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}
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
            "options": json.loads(json.dumps(given)),
        },
        files={},
    )


def _identity(piece: DetectorWorkpiece) -> dict[str, Any]:
    """What a checkpoint must have been made with to be continued."""
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(piece.options).items()}
    return {"data": piece.dataset.fingerprint, "processes": piece.world.size, "torch": torch.__version__, **arguments}


# -- fitting ------------------------------------------------------------------------------------------


def _fit(piece: DetectorWorkpiece, run: RunFolder, started: float, tell: Tell, on_epoch: EpochRow | None) -> Detector:
    """The trained network, on the CPU, in eval mode."""
    options, device = piece.options, piece.device
    half = half_precision(device, options)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        network = build_detector(piece.draft)
        if options.from_scratch:
            start_as_identity(network)
        load_body(network, options.weights)
    network.to(device).to(memory_format=torch.channels_last)
    log.info(
        "training",
        pictures=len(piece.pictures["train"]),
        device=str(device),
        dtype=str(half or torch.float32),
        stages=options.stage_plan,
        optimiser=options.optimiser_plan,
        rate=options.peak_rate,
    )
    task = detect_task(piece)
    budget = None if options.time_budget_s is None else _time_left(options.time_budget_s, started)
    fit(
        network,
        task,
        options,
        world=piece.world,
        device=device,
        run=run,
        budget_s=budget,
        tell=tell,
        on_epoch=on_epoch,
    )
    if piece.world.main:
        _settle(network, task, half)
    network.to("cpu").eval()
    return network


def detect_task(piece: DetectorWorkpiece) -> DetectTask:
    """The task that the loop runs."""
    draft = piece.draft
    assert draft.detector is not None, "a detector's manifest"
    train, val = piece.pictures["train"], piece.pictures["val"]
    return DetectTask(train, val, draft.classes, draft.preprocess, draft.detector, piece.options, piece.device)


def _settle(network: Detector, task: DetectTask, half: torch.dtype | None) -> None:
    """Replace the statistics that moved along with training by plain averages, where that judges better."""
    device = next(network.parameters()).device

    def key() -> tuple[float, ...]:
        with torch.no_grad(), torch.autocast(device.type, half, enabled=half is not None):
            return task.judge(network.eval()).key

    before = key()
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.autocast(device.type, half, enabled=half is not None):
        settle_batch_norm(network.backbone, task.plain_batches(_SETTLE_BATCH))
    if key() < before:
        network.load_state_dict(kept)


def _time_left(budget_s: float, started: float) -> float:
    """What a time budget leaves for fitting, after reading, and before quantising and judging."""
    finish = min(_FINISH_SHARE * budget_s, _FINISH_MOST_S)
    return max(0.25 * budget_s, budget_s - finish - (time.monotonic() - started))


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
    """Thresholds from validation for the worst of the copies that ship, and what they give."""
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
    return final.model_copy(update={"metrics": metrics})
