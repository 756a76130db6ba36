"""Evaluation: what a bundle does to labelled pictures that did not make it, as a page and as data.

admit pictures -> judge with every copy -> figures -> operating point -> worst pictures -> latency -> report
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import ValidationError

from inspectd import __version__
from inspectd.config import EngineConfig
from inspectd.errors import UsageError
from inspectd.frame import U8
from inspectd.machine import machine
from inspectd.model.bundle import WEIGHTS, Bundle, load_bundle
from inspectd.model.calibrate import F64, Labels
from inspectd.model.network import build_network, load_bundle_weights
from inspectd.progress import Tell
from inspectd.workshop.evaluation.admit import Admitted, Similar, admit
from inspectd.workshop.evaluation.figures import (
    BundleFigures,
    Calibration,
    Concern,
    DataFigures,
    Latency,
    OperatingPoint,
    Report,
)
from inspectd.workshop.evaluation.judged import (
    Deployment,
    Judged,
    copy_figures,
    deployments,
    judge,
    ok_score,
    pass_scores,
    role_mask,
)
from inspectd.workshop.evaluation.latency import measure_latency
from inspectd.workshop.evaluation.operating import choose_operating_point
from inspectd.workshop.evaluation.report import render
from inspectd.workshop.evaluation.sections import classifier_page
from inspectd.workshop.evaluation.statistics import calibration, curves, trade_off
from inspectd.workshop.evaluation.validation import Validation, find_validation
from inspectd.workshop.evaluation.worst import exhibits, worst_pictures
from inspectd.workshop.evaluation.written import REPORT_HTML, REPORT_JSON, refuse_output, write_report
from inspectd.workshop.place import refuse_exchanged
from inspectd.workshop.provenance import Provenance, printable, read_provenance


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """How to judge. Without a split, test/ is judged where there is one, else the folder as a whole."""

    split: Literal["test", "val"] | None = None
    max_escapes: float = 0.0  # share of bad pictures that may pass, for the operating point
    validation: Path | None = None  # pictures to choose the operating point on; None: val/ beside test/
    keep_similar: bool = False
    threads: int = 0  # of torch and of the engines; 0 leaves it to them
    gallery: int = 24  # pictures to look at
    latency_s: float = 2.0  # for each copy

    def __post_init__(self) -> None:
        if not 0 <= self.max_escapes < 1:
            raise UsageError(f"--max-escapes: {self.max_escapes} is not a share from 0 to below 1, like 0.01")
        if self.gallery < 0:
            raise UsageError("--gallery is not negative")
        try:
            EngineConfig(threads=self.threads)
        except ValidationError as err:
            raise UsageError(f"--threads {self.threads}: {err.errors()[0]['msg']}") from None


def evaluate(
    bundle: Path, data: Path, output: Path, options: EvaluateOptions, tell: Tell | None = None
) -> Report | None:
    """Judge the bundle by the pictures of `data` and write `report.html` and `report.json` into `output`.

    None for a detector, which has a report of its own.

    Raises:
        BundleError: the bundle is none, was changed, or is exchanged meanwhile.
        DataError: the pictures cannot be used.
        UsageError: pictures that made the bundle are among them, or `output` cannot be used.
        InspectdError: the report could not be written, or the engine failed.
    """
    told: Tell = tell or _silent
    refuse_output(output, bundle, data)
    loaded = load_bundle(bundle)
    if options.threads:
        torch.set_num_threads(options.threads)
    if loaded.manifest.task == "detect":
        from inspectd.workshop.detect.evaluate import evaluate_detector

        evaluate_detector(loaded, data, output, options, told)
        return None
    record = read_provenance(loaded)
    similar: Similar = "keep" if options.keep_similar else "drop"
    admitted = admit(data, loaded, record, options.split, _stage(told, "reading pictures"), similar)
    progress = _stage(told, "reading validation")
    validation = find_validation(options.validation, data, loaded, record, admitted, progress)
    refuse_exchanged(loaded)  # reading takes minutes
    report, page = _examine(loaded, data, admitted, validation, record, options, told)
    refuse_exchanged(loaded)
    write_report(output, {REPORT_JSON: report.model_dump_json(indent=2) + "\n", REPORT_HTML: page})
    return report


def _examine(
    bundle: Bundle,
    data: Path,
    admitted: Admitted,
    validation: Validation,
    record: Provenance | None,
    options: EvaluateOptions,
    tell: Tell,
) -> tuple[Report, str]:
    """All figures, and the page that shows them."""
    manifest, pictures, labels = bundle.manifest, admitted.pictures, admitted.pictures.labels
    deployed, chosen = deployments(bundle, options.threads)
    judged = list(judge(bundle, pictures.pixels, deployed, tell, "judging"))
    if not judged:
        raise UsageError(f"{bundle.path}: has neither weights nor a copy that this machine can run")
    headline = next((one for one in judged if one.name == chosen), judged[0])
    point = _operating_point(bundle, labels, validation, judged, deployed, options.max_escapes, tell)
    worst = worst_pictures(headline, pictures, manifest, options.gallery)
    latency = tuple(_latency(deployed, pictures.pixels, options.latency_s, tell))
    copies = tuple(copy_figures(one, judged[0], labels, manifest) for one in judged)
    good, score = role_mask(labels, manifest, "ok"), ok_score(headline.logits, manifest)
    before, after = (calibration(headline.logits, labels, t) for t in (1.0, manifest.temperature))
    report = Report(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        machine=machine(),
        bundle=BundleFigures.of(bundle),
        data=_data_figures(bundle, data, admitted, record, options),
        concerns=tuple(_concerns(admitted, judged, bundle)),
        deployed=headline.name,
        copies=copies,
        bad=curves(~good, -score, "bad pictures", "good pictures"),
        per_class={
            spec.name: curves(
                labels == label, _class_score(headline, label, bundle), f"pictures of {spec.name}", "pictures of others"
            )
            for label, spec in enumerate(manifest.classes)
        },
        calibration=Calibration(temperature=manifest.temperature, before=before, after=after)
        if before and after
        else None,
        trade_off=trade_off(pass_scores(headline.logits, manifest), good),
        operating_point=point,
        worst=tuple(picture for _, picture in worst),
        latency=latency,
    )
    network = _network(bundle)
    return report, render(classifier_page(report, exhibits(worst, pictures, bundle, network)))


def _operating_point(
    bundle: Bundle,
    labels: Labels,
    validation: Validation,
    judged: list[Judged],
    deployed: list[Deployment],
    max_escapes: float,
    tell: Tell,
) -> OperatingPoint:
    if validation.problem is not None:
        problem = f"cannot be chosen: {validation.problem}"
        return OperatingPoint(max_escapes=max_escapes, chosen_on=None, pass_min=None, problem=problem)
    own, own_labels = judged, labels
    if validation.pictures is not None:
        own = list(judge(bundle, validation.pictures.pixels, deployed, tell, "validation"))
        own_labels = validation.pictures.labels
    return choose_operating_point(max_escapes, own, own_labels, validation.words, judged, labels, bundle.manifest)


def _latency(deployed: list[Deployment], pixels: U8, enough_s: float, tell: Tell) -> Iterator[Latency]:
    for copy in deployed:
        told = _stage(tell, f"latency: {copy.name}")
        yield measure_latency(copy.name, copy.bundle, copy.config, pixels, enough_s, told)


def _class_score(judged: Judged, label: int, bundle: Bundle) -> F64:
    """The calibrated probability of one class, float64 [N]; 0 where there is none."""
    name = bundle.manifest.classes[label].name
    return np.array([decision.scores.get(name, 0.0) for decision in judged.decisions])


def _network(bundle: Bundle) -> torch.nn.Module | None:
    if WEIGHTS not in bundle.manifest.files:
        return None
    network = build_network(bundle.manifest)
    load_bundle_weights(network, bundle)
    return network


# -- what the report says about its own ground ------------------------------------------------------------


def _concerns(admitted: Admitted, judged: list[Judged], bundle: Bundle) -> Iterator[Concern]:
    """What speaks against trusting the figures, the gravest first."""
    pictures = admitted.pictures
    if admitted.split == "val":
        yield Concern(
            text="Validation data: not a test. The bundle's thresholds were chosen on such pictures.", grave=True
        )
    yield from admitted.concerns
    for one in judged:
        if broken := int((~np.isfinite(one.logits).all(axis=1)).sum()):
            words = (
                f"{one.name}: the engine failed on {broken} pictures; they count as engine errors, which never pass."
            )
            yield Concern(text=words, grave=True)
    if bad := len(pictures.unreadable):
        yield Concern(text=f"{bad} files cannot be read and are left out; they are listed below.")
    if repeated := len(admitted.twice):
        words = f"{repeated} pictures are there more than once and count each time: the intervals are too narrow."
        yield Concern(text=words)
    counts = pictures.counts(bundle.manifest.classes)
    if missing := [name for name, count in counts.items() if not count]:
        yield Concern(text=f"No pictures of {', '.join(missing)}: nothing is known about that.")
    if WEIGHTS not in bundle.manifest.files:
        yield Concern(text="The bundle has no weights for torch: its copies are compared with each other only.")
    if not set(bundle.copies) - {"onnx"}:
        words = "The bundle has no copy that the daemon can run on this machine: the figures are those of torch."
        yield Concern(text=words, grave=True)


def _data_figures(
    bundle: Bundle, data: Path, admitted: Admitted, record: Provenance | None, options: EvaluateOptions
) -> DataFigures:
    pictures = admitted.pictures
    return DataFigures(
        folder=printable(str(data)),
        split=admitted.split,
        fingerprint=pictures.fingerprint,
        pictures=len(pictures),
        counts=pictures.counts(bundle.manifest.classes),
        unreadable=pictures.unreadable,
        similar=admitted.similar,
        similar_kept=options.keep_similar,
        twice=admitted.twice,
        record=record is not None,
    )


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("torch", "openvino", "numpy", "scikit-learn")}
    return {"inspectd": __version__, "python": platform.python_version(), **found}


def _stage(tell: Tell, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: tell(stage, done, total)


def _silent(stage: str, done: int, total: int, message: str = "") -> None:
    pass
