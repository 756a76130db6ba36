"""A detector's operating point: thresholds from validation, and what they do to whole pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from inspectd.config import DecisionConfig
from inspectd.engine.base import Scores
from inspectd.model.calibrate import lowest_kept
from inspectd.model.manifest import Manifest, Thresholds
from inspectd.verdict.decide import Decider, Decision
from inspectd.workshop.detect.data import BoxedPictures

log = structlog.get_logger(__name__)

F64 = npt.NDArray[np.float64]

_PASS_FLOOR = 0.8
_FAIL_FLOOR, _FAIL_CEILING = 0.1, 0.5


def strongest_boxes(detections: Scores, classes: int) -> F64:
    """The score of the strongest box of each class: float32 [N, max_detections, 6] -> float64 [N, classes]."""
    strongest = np.zeros((len(detections), classes))
    picture, row = np.nonzero(detections[:, :, 5] > 0)
    labels = detections[picture, row, 5].astype(np.int64)
    np.maximum.at(strongest, (picture, labels), detections[picture, row, 4])
    return strongest


def choose_detector_thresholds(
    manifest: Manifest, detections: Scores, shown: Sequence[npt.NDArray[np.int64]], max_false_rejects: float
) -> Thresholds:
    """An operating point at which no validation picture with a defect passes.

    A picture passes by what its strongest box leaves of 1. `pass_min` lies midway between the most that is
    left of any picture with a defect and the least of the good ones, `max_false_rejects` of them given up;
    where the two cross it stands at the latter, and `picture_figures` counts what escapes. Without good
    pictures nothing is lost by asking for more than any with a defect has left.

    A class's `fail` lies midway between its strongest box on good pictures and its weakest "strongest box" on
    pictures that show it, within 0.1 to 0.5; where they overlap it is 0.5.

    Args:
        detections: of every copy, stacked: float32 [N, max_detections, 6].
        shown: for the same N the labels of the boxes that are there.
    """
    assert manifest.detector is not None, "a detector's manifest"
    strongest = strongest_boxes(detections, len(manifest.classes))
    left, bad = 1 - strongest.max(axis=1), np.array([len(labels) > 0 for labels in shown])
    worst = float(left[bad].max(initial=0.0))
    kept = lowest_kept(left[~bad], max_false_rejects) if not bad.all() else 1.0
    most = 1 - manifest.detector.score_floor
    pass_min = float(np.clip((worst + kept) / 2 if worst < kept else kept, _PASS_FLOOR, most))
    fail = {}
    for label, spec in enumerate(manifest.classes[1:], start=1):
        own = np.array([label in labels for labels in shown])
        low = float(strongest[~bad, label].max(initial=0.0))
        high = float(strongest[own, label].min(initial=1.0))
        middle = (low + high) / 2 if low < high else _FAIL_CEILING
        fail[spec.name] = round(float(np.clip(middle, _FAIL_FLOOR, _FAIL_CEILING)), 4)
    # Rounded up, so that rounding lets nothing pass.
    return Thresholds(pass_min=min(most, float(np.ceil(pass_min * 1e6) / 1e6)), fail=fail)


def warn_of_escapes(manifest: Manifest, max_false_rejects: float) -> None:
    """A wrong pass that is known beforehand is not left to be found in a table."""
    assert manifest.detector is not None, "a detector's manifest"
    judged = [figures for name, figures in manifest.metrics.items() if name not in ("split", "gate")]
    worst = max(figures["operating_point"]["escapes"] for figures in judged)
    if not worst:
        return
    if manifest.thresholds.pass_min < 1 - manifest.detector.score_floor:
        why = f"where {max_false_rejects:.0%} of the good ones may be given up"
        advice = "give more pictures, or a larger --max-false-rejects"
    else:
        why, advice = "as no box is found in them", "give more pictures, more --epochs, or a larger --size"
    log.warning("bad_pictures_pass", note=f"{worst} validation pictures wrongly pass {why}; {advice}")


def decisions(manifest: Manifest, detections: Scores) -> list[Decision]:
    """What the daemon would decide on each picture, by its own rule; boxes in network-input pixels."""
    decider = Decider(manifest, DecisionConfig())
    return [decider.decide(rows) for rows in detections]


def picture_figures(manifest: Manifest, detections: Scores, truth: BoxedPictures) -> dict[str, Any]:
    """What the bundle's thresholds do to these pictures.

    `escapes`: a defect that passes. `false_rejects`: a good part that does not pass, of `good`. `caught`: a
    defect that fails (and is not merely uncertain), of `defects`. `escaped_by_class`: those of each class
    shown, a picture with several counting for each.
    """
    verdicts = np.array([decision.verdict for decision in decisions(manifest, detections)])
    passes, fails, bad = verdicts == "pass", verdicts == "fail", truth.bad
    escaped = {
        spec.name: int(sum(passes[i] and label in labels for i, labels in enumerate(truth.labels)))
        for label, spec in enumerate(manifest.classes)
        if label
    }
    return {
        "good": int((~bad).sum()),
        "false_rejects": int((~bad & ~passes).sum()),
        "defects": int(bad.sum()),
        "caught": int((bad & fails).sum()),
        "uncertain": int((bad & ~fails & ~passes).sum()),
        "escapes": int((bad & passes).sum()),
        "escaped_by_class": escaped,
    }
