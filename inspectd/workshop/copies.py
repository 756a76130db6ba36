"""Deployable copies, made and gated: what `train` puts into a bundle and `export` adds to one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import structlog
from torch import nn

from inspectd.frame import U8
from inspectd.model.bundle import COPY_MODEL, Copy, Manifest, Thresholds
from inspectd.model.calibrate import Labels
from inspectd.model.export import (
    INT8_RECIPES,
    eager_logits,
    export_int8,
    export_onnx,
    export_openvino,
    openvino_logits,
)
from inspectd.workshop.gate import GateReport, Logits, judge_copy

log = structlog.get_logger(__name__)

CALIBRATION_PICTURES = 200
"""Pictures that set the INT8 ranges; NNCF's own default is 300, and 200 gave the same ranges here."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A copy that was made, what it says of the validation pictures, and what the gate says of it."""

    report: GateReport
    logits: Logits


def calibration_pictures(pixels: U8, seed: int) -> U8:
    """A seeded draw of training pictures, uint8 [N, H, W, 3] -> [at most 200, H, W, 3]."""
    return pixels[np.random.default_rng(seed).permutation(len(pixels))[:CALIBRATION_PICTURES]]


def make_copy(
    copy: Copy,
    network: nn.Module,
    manifest: Manifest,
    root: Path,
    calibration: U8,
    pixels: U8,
    labels: Labels,
    thresholds: Thresholds,
    temperature: float,
    eager: Logits | None = None,
) -> Judged:
    """Write `root/<copy>/` if the gate lets it pass; INT8 gets a second, more careful try. Otherwise nothing is left.

    Args:
        network: float32, on the CPU, in eval mode.
        calibration: uint8 [N, H, W, 3], pictures that were trained on.
        pixels, labels: pictures that were not, to judge by.
    """
    if eager is None:
        eager = eager_logits(network, pixels, manifest.preprocess)
    judged: Judged | None = None
    for how, export in _attempts(copy, network, manifest, root, calibration):
        # An ONNX copy runs elsewhere, as it is; the others as this processor would run them on the line.
        logits = openvino_logits(export(), pixels, "f32" if copy == "onnx" else None)
        report = judge_copy(copy, eager, logits, labels, manifest.classes, temperature, thresholds)
        judged = Judged(report, logits)
        if report.passed:
            return judged
        shutil.rmtree((root / COPY_MODEL[copy]).parent)
        log.info("copy_refused", copy=copy, how=how, why="; ".join(report.problems))
    assert judged is not None
    return judged


def _attempts(
    copy: Copy, network: nn.Module, manifest: Manifest, root: Path, calibration: U8
) -> Iterator[tuple[str, Callable[[], Path]]]:
    match copy:
        case "openvino":
            yield "bf16", partial(export_openvino, network, manifest, root)
        case "onnx":
            yield "f32", partial(export_onnx, network, manifest, root)
        case "openvino-int8":
            for recipe in INT8_RECIPES:
                yield recipe, partial(export_int8, network, manifest, root, calibration, recipe)


def refused(reports: Sequence[GateReport]) -> list[str]:
    """One line for each copy that does not ship."""
    return [f"{report.copy}: {'; '.join(report.problems)}" for report in reports if not report.passed]
