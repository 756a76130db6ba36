"""Evaluation of a detector: what a bundle finds in labelled pictures that did not make it, as a page and as data.

admit pictures -> judge with every copy -> figures -> worst pictures -> latency -> report
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console

from inspectd import __version__
from inspectd.errors import UsageError
from inspectd.frame import U8
from inspectd.machine import machine
from inspectd.model.bundle import WEIGHTS, Bundle
from inspectd.progress import Tell
from inspectd.workshop.detect.data import BoxedDataset, BoxedPictures, BoxedSample, load_boxes, open_boxes
from inspectd.workshop.detect.figures import BoxedDataFigures, DetectorReport
from inspectd.workshop.detect.gallery import worst_detections
from inspectd.workshop.detect.judged import JudgedDetector, detector_copy_figures, judge_detector
from inspectd.workshop.detect.operating import strongest_boxes
from inspectd.workshop.detect.page import detector_answer, detector_page
from inspectd.workshop.detect.precision import RECALL_STEPS
from inspectd.workshop.evaluation.figures import BundleFigures, Concern, Curve, Curves, Latency, SimilarPair
from inspectd.workshop.evaluation.judged import Deployment, deployments
from inspectd.workshop.evaluation.latency import measure_latency
from inspectd.workshop.evaluation.report import render
from inspectd.workshop.evaluation.statistics import curves
from inspectd.workshop.evaluation.written import REPORT_HTML, REPORT_JSON, refuse_output, write_report
from inspectd.workshop.place import refuse_exchanged
from inspectd.workshop.provenance import Provenance, pixels_sha256, printable, read_provenance

if TYPE_CHECKING:
    from inspectd.workshop.evaluation.evaluate import EvaluateOptions

SplitName = Literal["test", "val", "all"]
_NAMED_AT_MOST = 3
_PURPOSE = {"train": "trained", "val": "chose its thresholds"}


@dataclass(frozen=True, slots=True)
class _Admitted:
    """The pictures that may judge the bundle."""

    dataset: BoxedDataset
    split: SplitName
    samples: tuple[BoxedSample, ...]
    pictures: BoxedPictures
    similar: tuple[SimilarPair, ...]
    concerns: tuple[Concern, ...]


def evaluate_detector(bundle: Bundle, data: Path, output: Path, options: EvaluateOptions, tell: Tell) -> DetectorReport:
    """Judge the detector by the pictures of `data` and write `report.html` and `report.json` into `output`.

    Raises:
        DataError: pictures or labels cannot be used.
        UsageError: pictures that made the bundle are among them, `output` cannot be used, or `options` ask for
            what a detector has not.
        InspectdError: the report could not be written, or the engine failed.
    """
    _refuse_classifiers_options(options)
    refuse_output(output, bundle.path, data)
    record = read_provenance(bundle)
    admitted = _admit(bundle, data, record, options, tell)
    deployed, chosen = deployments(bundle, options.threads)
    judged = list(judge_detector(bundle, admitted.pictures, deployed, tell))
    if not judged:
        raise UsageError(f"{bundle.path}: has neither weights nor a copy that this machine can run")
    headline = next((one for one in judged if one.name == chosen), judged[0])
    names = [printable(boxed.sample.name) for boxed in admitted.samples]
    worst = worst_detections(headline, names, admitted.pictures, bundle.manifest, options.gallery)
    pixels = admitted.pictures.pixels
    report = DetectorReport(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        machine=machine(),
        bundle=BundleFigures.of(bundle),
        data=_data_figures(data, admitted, record, options),
        concerns=tuple(_concerns(admitted, judged, bundle)),
        deployed=headline.name,
        copies=tuple(detector_copy_figures(one, judged[0], admitted.pictures, bundle.manifest) for one in judged),
        bad=_picture_curves(headline, admitted.pictures, bundle),
        per_class=_box_curves(headline),
        worst=tuple(picture for _, picture in worst),
        latency=tuple(_latencies(deployed, pixels, options.latency_s, tell)),
    )
    page = render(detector_page(report, [pixels[row] for row, _ in worst]))
    refuse_exchanged(bundle)
    write_report(output, {REPORT_JSON: report.model_dump_json(indent=2) + "\n", REPORT_HTML: page})
    _print_outcome(report, output)
    return report


def _refuse_classifiers_options(options: EvaluateOptions) -> None:
    """Nothing that was asked for is left out without a word."""
    for option, asked in (("--validation", options.validation is not None), ("--max-escapes", options.max_escapes)):
        if asked:
            raise UsageError(f"evaluate: {option} is for classifiers; a detector is judged by its bundle's thresholds")


def _print_outcome(report: DetectorReport, output: Path) -> None:
    console = Console(highlight=False)
    console.print(detector_answer(report), markup=False)
    for concern in report.concerns:
        console.print(f"note: {concern.text}", markup=False)
    console.print(f"{output / REPORT_HTML}", markup=False, soft_wrap=True)


# -- which pictures -----------------------------------------------------------------------------------


def _admit(bundle: Bundle, data: Path, record: Provenance | None, options: EvaluateOptions, tell: Tell) -> _Admitted:
    """Read the pictures that are asked for, and hold them against those that made the bundle."""
    dataset = open_boxes(
        data,
        classes=bundle.manifest.classes,
        on_progress=lambda done, total: tell("checking pictures", done, total),
    )
    split, samples = _asked_for(dataset, record, options.split)
    spec = bundle.manifest.preprocess
    pictures = load_boxes(samples, spec, lambda done, total: tell("reading pictures", done, total))
    if record is None:
        text = "The bundle does not record which pictures made it: whether it was trained on these cannot be checked."
        return _Admitted(dataset, split, samples, pictures, (), (Concern(text=text, grave=True),))
    _refuse_overlap(data, samples, pictures, record, ("train",) if split == "val" else ("train", "val"))
    pairs = record.similar(pictures.pixels, ("train",) if split == "val" else ("train", "val"))
    similar = tuple(
        SimilarPair(name=printable(samples[row].sample.name), trained_on=f"{seen.split}: {seen.name}")
        for row, seen in pairs
    )
    if not similar:
        return _Admitted(dataset, split, samples, pictures, (), ())
    what = f"{len(similar)} of {len(samples)} pictures nearly equal pictures that the bundle was made from"
    if options.keep_similar:
        concern = Concern(text=f"{what}, and are counted (--keep-similar): the figures flatter it.", grave=True)
        return _Admitted(dataset, split, samples, pictures, similar, (concern,))
    left_out = {row for row, _ in pairs}
    rows = [row for row in range(len(samples)) if row not in left_out]
    if not rows:
        raise UsageError(
            f"{data}: all {len(samples)} pictures nearly equal ones that the bundle was made from, the first "
            f"{similar[0].name} and {similar[0].trained_on}; give others, or judge by these with --keep-similar"
        )
    kept = BoxedPictures(
        pictures.pixels[rows], tuple(pictures.edges[row] for row in rows), tuple(pictures.labels[row] for row in rows)
    )
    concern = Concern(text=f"{what}, and are left out; --keep-similar would count them.")
    return _Admitted(dataset, split, tuple(samples[row] for row in rows), kept, similar, (concern,))


def _asked_for(
    dataset: BoxedDataset, record: Provenance | None, asked: Literal["test", "val"] | None
) -> tuple[SplitName, tuple[BoxedSample, ...]]:
    """A split that the folder has; in a folder without splits, what the bundle's record leaves of it.

    Raises:
        UsageError: there is no such split.
    """
    splits = dataset.splits
    if len(splits) > 1 or "train" in splits or "val" in splits:
        name = asked or ("test" if "test" in splits else None)
        if name is None or name not in splits:
            there = ", ".join(splits)
            raise UsageError(f"{dataset.root}: has {there}; say which to judge by with --split, or give other pictures")
        return name, splits[name]
    whole = splits["test"]
    if asked is None:
        return "all", whole
    if record is None:
        raise UsageError(f"{dataset.root}: has no splits, and the bundle does not record which pictures made it")
    seen = {one.file: one.split for one in record.pictures}
    wanted = "val" if asked == "val" else None
    samples = tuple(boxed for boxed in whole if seen.get(boxed.sample.sha256) == wanted)
    if not samples:
        raise UsageError(f"{dataset.root}: no pictures for --split {asked}: all made the bundle in another way")
    return asked, samples


def _refuse_overlap(
    data: Path,
    samples: Sequence[BoxedSample],
    pictures: BoxedPictures,
    record: Provenance,
    forbidden: Sequence[str],
) -> None:
    """Figures on pictures that made the bundle say nothing about others.

    Raises:
        UsageError: some are; the first few are named.
    """
    files = [boxed.sample.sha256 for boxed in samples]
    seen = record.overlap(files, [pixels_sha256(pixels) for pixels in pictures.pixels])
    known = [(boxed, one) for boxed, one in zip(samples, seen, strict=True) if one and one.split in forbidden]
    if not known:
        return
    first = ", ".join(
        f"{printable(boxed.sample.name)} ({_PURPOSE[one.split]})" for boxed, one in known[:_NAMED_AT_MOST]
    )
    more = f" and {len(known) - _NAMED_AT_MOST} more" if len(known) > _NAMED_AT_MOST else ""
    advice = "--split test judges by the others" if len(known) < len(samples) else "judge it by other pictures"
    raise UsageError(f"{data}: {len(known)} of {len(samples)} pictures made this bundle: {first}{more}; {advice}")


def _concerns(admitted: _Admitted, judged: Sequence[JudgedDetector], bundle: Bundle) -> Iterator[Concern]:
    """What speaks against trusting the figures, the gravest first."""
    if admitted.split == "val":
        yield Concern(
            text="Validation data: not a test. The bundle's thresholds were chosen on such pictures.", grave=True
        )
    yield from admitted.concerns
    for one in judged:
        if broken := int((~np.isfinite(one.detections).all(axis=(1, 2))).sum()):
            words = f"{one.name}: the engine failed on {broken} pictures; they count as engine error, without boxes."
            yield Concern(text=words, grave=True)
    if admitted.pictures.bad.all():
        yield Concern(text="No pictures without boxes: nothing is known about false rejects.")
    there = {int(label) for labels in admitted.pictures.labels for label in labels}
    names = [spec.name for label, spec in enumerate(bundle.manifest.classes) if label and label not in there]
    if names:
        yield Concern(text=f"No boxes of {', '.join(names)}: nothing is known about that.")
    if WEIGHTS not in bundle.manifest.files:
        yield Concern(text="The bundle has no weights for torch: its copies are compared with each other only.")


# -- figures ------------------------------------------------------------------------------------------


def _latencies(deployed: Sequence[Deployment], pixels: U8, enough_s: float, tell: Tell) -> Iterator[Latency]:
    for copy in deployed:
        yield measure_latency(
            copy.name, copy.bundle, copy.config, pixels, enough_s, partial(tell, f"latency: {copy.name}")
        )


def _picture_curves(judged: JudgedDetector, pictures: BoxedPictures, bundle: Bundle) -> Curves:
    detections = np.nan_to_num(judged.detections, nan=-1)
    strongest = strongest_boxes(detections, len(bundle.manifest.classes)).max(axis=1)
    return curves(pictures.bad, strongest, "pictures with a defect", "good pictures")


def _box_curves(judged: JudgedDetector) -> dict[str, Curves]:
    none = Curve(problem="cannot be computed: boxes that are not there are not counted")
    steps = tuple(RECALL_STEPS.tolist())
    return {
        name: Curves(
            roc=none,
            precision_recall=Curve(x=steps, y=tuple(curve.tolist()), area=judged.precision.per_class[name][0]),
        )
        for name, curve in judged.precision.curves.items()
    }


def _data_figures(
    data: Path, admitted: _Admitted, record: Provenance | None, options: EvaluateOptions
) -> BoxedDataFigures:
    labels = np.concatenate([*admitted.pictures.labels, np.zeros(0, np.int64)])
    good = int((~admitted.pictures.bad).sum())
    counts = {
        spec.name: int((labels == label).sum()) if label else good
        for label, spec in enumerate(admitted.dataset.classes)
    }
    return BoxedDataFigures(
        folder=printable(str(data)),
        split=admitted.split,
        fingerprint=admitted.dataset.fingerprint,
        pictures=len(admitted.samples),
        counts=counts,
        similar=admitted.similar,
        similar_kept=options.keep_similar,
        record=record is not None,
    )


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("torch", "torchvision", "openvino", "faster-coco-eval")}
    return {"inspectd": __version__, "python": platform.python_version(), **found}
