"""From a trained network to the files of its bundle: copies behind their gate, thresholds, figures, origin."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from torch import nn

from inspectd import __version__
from inspectd.frame import U8
from inspectd.model.bundle import FORMAT_VERSION, WEIGHTS, write_manifest
from inspectd.model.calibrate import choose_thresholds, fit_temperature, operating_point, softmax, summary
from inspectd.model.data import Pictures, Sample, Split
from inspectd.model.export import eager_logits
from inspectd.model.manifest import Copy, Manifest
from inspectd.model.network import save_weights
from inspectd.progress import Tell
from inspectd.workshop.copies import Judged, calibration_pictures, float32_copies, make_copy, refused
from inspectd.workshop.provenance import write_provenance
from inspectd.workshop.training import as_json
from inspectd.workshop.workpiece import Workpiece

log = structlog.get_logger(__name__)


def fill_bundle(work: Path, network: nn.Module, piece: Workpiece, trained_s: float, tell: Tell) -> None:
    """Write everything that belongs to the bundle into `work`, the copies only if their gate lets them pass."""
    manifest = _draft(piece, trained_s)
    train_pictures, val = piece.pictures["train"], piece.pictures["val"]
    save_weights(network, work / WEIGHTS)
    write_provenance(work, _made_from(piece))
    copies: list[Copy] = ["openvino", "openvino-int8"] if piece.options.int8 else ["openvino"]
    steps = len(copies) + 1
    tell("writing the bundle", 0, steps)

    eager = eager_logits(network, val.pixels, piece.spec)
    temperature = fit_temperature(eager, val.labels)
    false_rejects = piece.options.max_false_rejects
    thresholds = choose_thresholds(softmax(eager, temperature), val.labels, manifest.classes, false_rejects)
    calibration = calibration_pictures(train_pictures.pixels, piece.options.seed)
    judged: dict[Copy, Judged] = {}
    for number, copy in enumerate(copies):
        tell("writing the bundle", number, steps, copy)
        judged[copy] = make_copy(
            copy, network, manifest, work, calibration, val.pixels, val.labels, thresholds, temperature, eager
        )
    for line in refused([each.report for each in judged.values()]):
        log.warning("copy_left_out", why=line)
    tell("writing the bundle", steps - 1, steps, "thresholds")
    logits: dict[str, Any] = {
        "eager": eager,
        **{copy: each.logits for copy, each in judged.items() if each.report.passed},
    }
    gates: dict[str, Any] = {copy: each.report.as_json() for copy, each in judged.items()}
    needs = {copy: each.float32 for copy, each in judged.items() if each.report.passed}
    manifest = manifest.model_copy(update={"float32": float32_copies((), needs)})
    final = _calibrated(manifest, logits, val, temperature, false_rejects, gates)
    _warn_of_escapes(final, false_rejects)
    write_manifest(work, final)
    tell("writing the bundle", steps, steps)


def _made_from(piece: Workpiece) -> Iterator[tuple[Split, Sample, U8]]:
    for split, samples in piece.dataset.splits.items():
        if split != "test":
            yield from zip(repeat(split), samples, piece.dataset.pictures[split].pixels, strict=False)


def _warn_of_escapes(manifest: Manifest, false_rejects: float) -> None:
    """A wrong pass that is known beforehand is not left to be found in a table."""
    judged = [figures for name, figures in manifest.metrics.items() if name not in ("split", "gate")]
    worst = max(figures["operating_point"]["escapes"] for figures in judged)
    if worst:
        note = f"{worst} validation pictures wrongly pass where {false_rejects:.0%} of the good ones may be given up"
        log.warning("bad_pictures_pass", note=f"{note}; give more pictures, or a larger --max-false-rejects")


def _draft(piece: Workpiece, trained_s: float) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        architecture="resnet18",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        created_by=f"inspectd {__version__}, torch {torch.__version__}",
        classes=piece.dataset.classes,
        preprocess=piece.spec,
        training={
            "data_sha256": piece.dataset.fingerprint,
            "pictures": {split: piece.dataset.counts(split) for split in piece.dataset.splits},
            "options": as_json(piece.options),
            "imbalance": piece.plan.why,
            "seconds": round(trained_s, 1),
        },
        files={},
    )


def _calibrated(
    manifest: Manifest,
    logits: dict[str, np.ndarray[Any, np.dtype[np.float32]]],
    val: Pictures,
    temperature: float,
    max_false_rejects: float,
    gates: dict[str, Any],
) -> Manifest:
    """Thresholds from validation for the worst of the copies that ship, and what they give."""
    probabilities = {name: softmax(values, temperature) for name, values in logits.items()}
    stacked, labels = np.concatenate(list(probabilities.values())), np.tile(val.labels, len(probabilities))
    thresholds = choose_thresholds(stacked, labels, manifest.classes, max_false_rejects)
    metrics: dict[str, Any] = {"split": "val", "gate": gates}
    for name, values in logits.items():
        metrics[name] = summary(values, val.labels, manifest.classes) | {
            "agreement_with_eager": round(float((values.argmax(1) == logits["eager"].argmax(1)).mean()), 4),
            "operating_point": operating_point(probabilities[name], val.labels, manifest.classes, thresholds),
        }
    return manifest.model_copy(update={"temperature": temperature, "thresholds": thresholds, "metrics": metrics})
