"""From logits on pictures that were not trained on to honest probabilities, thresholds and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inspectd.model.manifest import ClassSpec, Thresholds

F64 = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

MAX_FALSE_REJECTS = 0.1
"""Share of good validation pictures that may be given up so that no bad one passes."""

_LIKELY = 1.92
"""Half of what chi-square of one degree of freedom stays below in 95 % of cases: Wilks' interval of one parameter."""
_PASS_FLOOR = 0.8
_FAIL_FLOOR, _FAIL_CEILING = 0.1, 0.5


def softmax(logits: npt.NDArray[np.floating[Any]], temperature: float = 1.0) -> F64:
    """Probabilities, float64 [N, classes]."""
    scaled = logits.astype(np.float64) / temperature
    exponents = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: F64 = exponents / exponents.sum(axis=1, keepdims=True)
    return probabilities


def fit_temperature(logits: npt.NDArray[np.floating[Any]], labels: Labels) -> float:
    """The temperature that makes validation labels most likely (Guo et al. 2017, "On Calibration…").

    Below 1, where every score becomes surer, only as far as the pictures vouch for it: the highest up to 1 whose
    likelihood is within 95 % confidence of the best one's. On pictures that are all right the best would be 0 and
    every score a certainty, which ten pictures vouch for less than a thousand. Searched between 0.25 and 10.
    """
    grid = np.unique([*np.geomspace(0.25, 1.0, 76), *np.geomspace(1.0, 10.0, 125)])
    rows = np.arange(len(labels))
    losses = np.array([-np.log(np.maximum(softmax(logits, t)[rows, labels], 1e-12)).sum() for t in grid])
    best = float(grid[np.argmin(losses)])
    if best < 1:
        best = float(grid[(grid <= 1) & (losses <= losses.min() + _LIKELY)].max())
    return round(best, 4)


def choose_thresholds(
    probabilities: F64,
    labels: Labels,
    classes: Sequence[ClassSpec],
    max_false_rejects: float = MAX_FALSE_REJECTS,
) -> Thresholds:
    """An operating point at which no validation picture of a defect or an empty station passes.

    `pass_min` lies midway between the highest ok probability of any picture that must not pass and the
    lowest that all but `max_false_rejects` of the good ones reach, but never below 0.8. Where the two
    cross, the good ones that may be given up are not enough; it then stands at that bound, and
    `operating_point` counts what escapes.

    A defect's `fail` lies midway between the highest that its probability gets on pictures of ok and
    empty classes and the lowest on its own, within 0.1 to 0.5; where they overlap it is 0.5, and what is
    below it becomes uncertain, not a pass.

    Args:
        probabilities: calibrated, float64 [N, classes]; of every deployed copy, stacked.
        labels: int64 [N].
    """
    ok, defect = _roles(classes, "ok"), _roles(classes, "defect")
    is_good, is_bad = ok[labels], defect[labels]
    ok_score = probabilities[:, ok].sum(axis=1)
    pass_min = _PASS_FLOOR
    if is_good.any() and not is_good.all():
        kept = lowest_kept(ok_score[is_good], max_false_rejects)
        worst = float(ok_score[~is_good].max())
        pass_min = max(_PASS_FLOOR, (worst + kept) / 2 if worst < kept else kept)
    fail = {}
    for index, spec in enumerate(classes):
        if spec.role == "defect":
            own = probabilities[labels == index, index]
            others = probabilities[~is_bad, index]
            low, high = others.max(initial=0.0), own.min(initial=1.0)
            middle = (low + high) / 2 if low < high else _FAIL_CEILING
            fail[spec.name] = round(float(np.clip(middle, _FAIL_FLOOR, _FAIL_CEILING)), 4)
    return Thresholds(pass_min=_up(pass_min), fail=fail)


def lowest_kept(scores: F64, give_up: float) -> float:
    """The lowest of the scores that is kept when as many as the share `give_up` (0 to below 1) allows are not."""
    return float(np.sort(scores)[int(give_up * len(scores) + 1e-9)])


def operating_point(
    probabilities: F64, labels: Labels, classes: Sequence[ClassSpec], thresholds: Thresholds
) -> dict[str, int]:
    """What the thresholds do to these pictures, by the daemon's rule.

    `escapes`: a defect or an empty station that passes. `false_rejects`: a good part that does not pass,
    `good`: how many there are. `caught`: a defect that fails (and is not merely uncertain), of `defects`.
    """
    ok, defect = _roles(classes, "ok"), _roles(classes, "defect")
    limit = np.array([thresholds.fail.get(c.name, thresholds.fail_default) if c.role == "defect" else np.inf
                      for c in classes])  # fmt: skip
    fails = (probabilities >= limit).any(axis=1)
    passes = ~fails & (probabilities[:, ok].sum(axis=1) >= thresholds.pass_min)
    is_good, is_bad = ok[labels], defect[labels]
    return {
        "good": int(is_good.sum()),
        "false_rejects": int((is_good & ~passes).sum()),
        "defects": int(is_bad.sum()),
        "caught": int((is_bad & fails).sum()),
        "escapes": int((~is_good & passes).sum()),
    }


def summary(logits: npt.NDArray[np.floating[Any]], labels: Labels, classes: Sequence[ClassSpec]) -> dict[str, Any]:
    """Accuracy, recall per class (None where there is no picture) and the confusion matrix [truth][top class]."""
    top = logits.argmax(axis=1)
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels, top), 1)
    counts = confusion.sum(axis=1)
    recall = {
        spec.name: round(float(confusion[i, i] / counts[i]), 4) if counts[i] else None for i, spec in enumerate(classes)
    }
    return {
        "pictures": len(labels),
        "accuracy": round(float((top == labels).mean()), 4),
        "recall": recall,
        "confusion": confusion.tolist(),
    }


def _roles(classes: Sequence[ClassSpec], role: str) -> npt.NDArray[np.bool_]:
    return np.array([spec.role == role for spec in classes])


def _up(value: float) -> float:
    """Rounded to six digits away from zero, so that rounding lets nothing pass."""
    return float(min(1.0, np.ceil(value * 1e6) / 1e6))
