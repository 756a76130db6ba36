"""A detector's deployable copies: made, gated, and put into a bundle when it is trained or later.

`inspectd export` ends here for a detector.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError

from inspectd.engine.base import Scores
from inspectd.errors import DataError, UsageError
from inspectd.frame import U8
from inspectd.model.bundle import WEIGHTS, Bundle, write_manifest
from inspectd.model.export import native_bf16
from inspectd.model.manifest import COPY_MODEL, Copy, Manifest
from inspectd.model.network import load_weights, save_weights
from inspectd.progress import Tell
from inspectd.workshop.copies import calibration_pictures, float32_copies
from inspectd.workshop.detect.convert import export_detector, export_detector_int8, openvino_detections
from inspectd.workshop.detect.data import BoxedPictures, load_boxes, open_boxes
from inspectd.workshop.detect.gate import CopyReport, judge_detector_copy
from inspectd.workshop.detect.network import Detector, build_detector
from inspectd.workshop.detect.task import predict
from inspectd.workshop.export import ExportOutcome
from inspectd.workshop.options import ExportTarget
from inspectd.workshop.place import copy_files, refuse_exchanged, refuse_other_things, replacing
from inspectd.workshop.provenance import read_provenance


def make_detector_copies(
    network: Detector, manifest: Manifest, root: Path, eager: Scores, truth: BoxedPictures, calibration: U8 | None
) -> list[CopyReport]:
    """Write each deployable copy to `root` that its gate lets pass, and say how each did.

    Args:
        network: float32, on the CPU, in eval mode.
        manifest: with thresholds, at which wrong passes are counted.
        eager: what the network finds in the pictures of `truth`.
        calibration: pictures that were trained on, to quantise by; None makes no INT8 copy.
    """
    reports = [_make("openvino", network, manifest, root, eager, truth, None)]
    if calibration is not None:
        reports.append(_make("openvino-int8", network, manifest, root, eager, truth, calibration))
    return reports


def _make(
    copy: Copy,
    network: Detector,
    manifest: Manifest,
    root: Path,
    eager: Scores,
    truth: BoxedPictures,
    calibration: U8 | None,
) -> CopyReport:
    if copy == "openvino-int8":
        assert calibration is not None, "INT8 is calibrated"
        path = export_detector_int8(network, manifest, root, calibration)
    else:
        path = export_detector(network, manifest, root)
    # As the processor likes; or else with float32 for what is not quantised: heads feel bf16 more than a body does.
    # A processor without bf16 says nothing about it.
    report = judge_detector_copy(copy, eager, openvino_detections(path, truth.pixels), manifest, truth)
    report = replace(report, float32=not native_bf16())
    if not report.passed:
        exact = openvino_detections(path, truth.pixels, "f32")
        report = replace(judge_detector_copy(copy, eager, exact, manifest, truth), float32=True)
    if not report.passed:
        shutil.rmtree(path.parent)
    return report


def export_detector_copy(
    bundle: Bundle, to: ExportTarget, data: Path | None, output: Path | None, tell: Tell
) -> ExportOutcome:
    """Make one copy of a detector's bundle and, where the gate lets it pass, put it in place.

    It goes into the bundle itself, or into a new bundle at `output`; `torch` is a file of torchvision's names at
    `output`. `data` is what trained the bundle: its pictures calibrate, and judge. A refusal changes nothing.

    Raises:
        BundleError: the weights do not fit the manifest.
        DataError: `data` is not what trained the bundle, or the result cannot be written.
        UsageError: a copy that a detector cannot have, or something that is needed is not given.
    """
    network = build_detector(bundle.manifest)
    load_weights(network, bundle.path / WEIGHTS)
    network.eval()
    if to == "torch":
        return _export_torch(network, output)
    if to == "onnx":
        raise UsageError(f"export: --to {to} is for classifiers; a detector has openvino, openvino-int8 and torch")
    if data is None:
        raise UsageError("export: give --data with the pictures that trained the bundle; the gate judges by them")
    train, val = _pictures_of(bundle, data, tell)
    tell("exporting", 0, 1, to)
    destination = output or bundle.path
    report = _export_into(bundle, to, network, train, val, destination)
    tell("exporting", 1, 1, to)
    if not report.passed:
        return ExportOutcome(False, tuple(f"{to}: refused by its gate: {problem}" for problem in report.problems))
    found = f"mAP@0.5 {report.figures['map_50']}, {report.figures['operating_point']['escapes']} wrongly passed"
    line = f"{to}: passed its gate on {len(val)} validation pictures: {found}"
    return ExportOutcome(True, (line, f"{destination}"))


def _export_torch(network: Detector, output: Path | None) -> ExportOutcome:
    if output is None or output.suffix != ".safetensors":
        raise UsageError("export --to torch: give -o FILE.safetensors")
    try:
        save_weights(network, output)
    except (OSError, SafetensorError) as err:
        raise DataError(f"{output}: cannot be written: {err}") from err
    return ExportOutcome(True, (f"{output}: {sum(p.numel() for p in network.parameters())} parameters",))


def _export_into(
    bundle: Bundle, to: Copy, network: Detector, train: U8, val: BoxedPictures, destination: Path
) -> CopyReport:
    """Make the copy aside; only one that passed its gate touches anything."""
    refuse_other_things(destination)
    manifest = bundle.manifest
    assert manifest.detector is not None, "a detector's manifest"
    eager = predict(network, val.pixels, manifest.preprocess, manifest.detector, torch.device("cpu"))
    with TemporaryDirectory(prefix="inspectd-export-") as aside:
        report = _make(to, network, manifest, Path(aside), eager, val, calibration_pictures(train, seed=0))
        if not report.passed:
            return report
        metrics = {**manifest.metrics, to: report.metrics(len(val))}
        metrics["gate"] = {**manifest.metrics.get("gate", {}), to: report.as_json()}
        with replacing(destination) as work:
            copy_files(bundle, work)
            shutil.rmtree((work / COPY_MODEL[to]).parent, ignore_errors=True)
            shutil.copytree(Path(aside) / to, work / to)
            float32 = float32_copies(manifest.float32, {to: report.float32})
            write_manifest(work, manifest.model_copy(update={"metrics": metrics, "float32": float32}))
            refuse_exchanged(bundle)
    return report


def _pictures_of(bundle: Bundle, data: Path, tell: Tell) -> tuple[U8, BoxedPictures]:
    """Training pixels and validation pictures that made the bundle, out of `data`, by their hashes."""
    record = read_provenance(bundle)
    if record is None:
        raise UsageError(f"{bundle.path}: does not record what it was trained on; train it again")
    dataset = open_boxes(
        data,
        classes=bundle.manifest.classes,
        on_progress=lambda done, total: tell("checking pictures", done, total),
    )
    found = {boxed.sample.sha256: boxed for part in dataset.splits.values() for boxed in part}
    if missing := [seen.name for seen in record.pictures if seen.file not in found]:
        raise DataError(
            f"{data}: {len(missing)} of {len(record.pictures)} pictures that made {bundle.path} are not there, "
            f"{missing[0]} for one; give the folder that trained it"
        )
    train, val = (
        load_boxes(
            [found[seen.file] for seen in record.pictures if seen.split == split],
            bundle.manifest.preprocess,
            lambda done, total: tell("reading pictures", done, total),
        )
        for split in ("train", "val")
    )
    return train.pixels, val
