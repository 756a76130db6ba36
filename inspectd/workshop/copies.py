"""Deployable copies, made and gated: what `train` puts into a bundle and `export` adds to one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import structlog
from torch import nn

from inspectd.frame import U8
from inspectd.model.calibrate import Labels
from inspectd.model.export import (
    INT8_RECIPES,
    eager_logits,
    export_int8,
    export_onnx,
    export_openvino,
    native_bf16,
    openvino_logits,
)
from inspectd.model.manifest import COPY_MODEL, Copy, Manifest, Thresholds
from inspectd.workshop.gate import GateReport, Logits, judge_copy

log = structlog.get_logger(__name__)

CALIBRATION_PICTURES = 200
"""Pictures that set the INT8 ranges; NNCF's own default is 300, and 200 gave the same ranges here."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A copy that was made, what it says of the validation pictures, and what the gate says of it."""

    report: GateReport
    logits: Logits
    float32: bool  # nothing was seen of it in bf16


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
    """Write `root/<copy>/` if the gate lets it pass, at the second try with more care. Otherwise nothing is left.

    Args:
        network: float32, on the CPU, in eval mode.
        calibration: uint8 [N, H, W, 3], pictures that were trained on.
        pixels, labels: pictures that were not, to judge by.
    """
    if eager is None:
        eager = eager_logits(network, pixels, manifest.preprocess)
    judged: Judged | None = None
    for attempt in _attempts(copy, network, manifest, root, calibration):
        logits = openvino_logits(attempt.export(), pixels, attempt.precision)
        report = judge_copy(copy, eager, logits, labels, manifest.classes, temperature, thresholds)
        judged = Judged(report, logits, copy != "onnx" and (attempt.precision == "f32" or not native_bf16()))
        if report.passed:
            return judged
        shutil.rmtree((root / COPY_MODEL[copy]).parent)
        log.info("copy_refused", copy=copy, how=attempt.how, why="; ".join(report.problems))
    assert judged is not None
    return judged


@dataclass(frozen=True, slots=True)
class _Attempt:
    how: str
    export: Callable[[], Path]
    precision: str | None = None  # None: what this processor would choose on the line


def _attempts(copy: Copy, network: nn.Module, manifest: Manifest, root: Path, calibration: U8) -> list[_Attempt]:
    match copy:
        case "openvino":
            export = partial(export_openvino, network, manifest, root)
            return [_Attempt("as the processor likes", export), _Attempt("float32", export, "f32")]
        case "onnx":
            return [_Attempt("float32, as it runs elsewhere", partial(export_onnx, network, manifest, root), "f32")]
        case "openvino-int8":
            return [
                _Attempt(recipe, partial(export_int8, network, manifest, root, calibration, recipe))
                for recipe in INT8_RECIPES
            ]


def float32_copies(before: Sequence[Copy], now: Mapping[Copy, bool]) -> tuple[Copy, ...]:
    """`Manifest.float32` after copies were made: by name, whether each needs it."""
    kept = [copy for copy in before if copy not in now]
    return tuple(sorted([*kept, *(copy for copy, needs in now.items() if needs)]))


def refused(reports: Sequence[GateReport]) -> list[str]:
    """One line for each copy that does not ship."""
    return [f"{report.copy}: {'; '.join(report.problems)}" for report in reports if not report.passed]
