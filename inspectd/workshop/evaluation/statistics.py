"""From verdicts and probabilities to figures with their uncertainty. Every function bears empty input.

Curves are scikit-learn's, intervals are SciPy's; both are imported where they are used, because that
takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inspectd.model.calibrate import F64, Labels, softmax
from inspectd.model.manifest import ClassSpec
from inspectd.workshop.evaluation.figures import Bin, CalibrationFigures, ClassFigures, Curve, Curves, Share, TradeOff

Mask = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
BINS = 15
"""Of the reliability diagram, of equal width: as in Guo et al. 2017."""
PASS_FLOOR = 0.8
"""Where nothing may escape, `pass_min` is never chosen lower, as in training."""
PASS_LEAST = 0.500001  # the lowest that a configuration can hold
_CURVE_POINTS = 500


def share(count: int, of: int) -> Share:
    """A share with its Wilson interval (Wilson 1927), which bears few pictures and shares near 0 and 1."""
    if not of:
        return Share(count=count, of=of, share=None, low=None, high=None)
    from scipy.stats import binomtest

    interval = binomtest(int(count), int(of)).proportion_ci(CONFIDENCE, method="wilson")
    low, high = max(0.0, interval.low), min(1.0, interval.high)
    return Share(count=int(count), of=int(of), share=_r(count / of), low=_r(low), high=_r(high))


def upper_bound(count: int, of: int) -> float | None:
    """With 95 % confidence the true share is below this (Clopper and Pearson 1934, one-sided, exact).

    For `count` 0 it is 1 - 0.05 ** (1 / of), about 3 / of: the rule of three. None without pictures.
    """
    if not of:
        return None
    from scipy.stats import binomtest

    bound: float = binomtest(int(count), int(of), alternative="less").proportion_ci(CONFIDENCE, method="exact").high
    return math.ceil(bound * 1e6) / 1e6  # rounded towards the worse


def top_classes(logits: npt.NDArray[np.floating[Any]]) -> Labels:
    """Index of the largest logit, int64 [N]; -1 where the scores are no finite numbers."""
    top: Labels = np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)
    return top


def confusion(top: Labels, labels: Labels, classes: int) -> npt.NDArray[np.int64]:
    """int64 [true class, top class]; pictures without a top class are in no column."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (labels[top >= 0], top[top >= 0]), 1)
    return table


def class_figures(top: Labels, labels: Labels, classes: Sequence[ClassSpec]) -> tuple[ClassFigures, ...]:
    """Recall and precision of each class."""
    hits = np.bincount(labels[top == labels], minlength=len(classes))
    truth = np.bincount(labels, minlength=len(classes))
    called = np.bincount(top[top >= 0], minlength=len(classes))
    return tuple(
        ClassFigures(
            name=spec.name,
            role=spec.role,
            recall=share(hits[i], truth[i]),
            precision=share(hits[i], called[i]),
        )
        for i, spec in enumerate(classes)
    )


def curves(positive: Mask, score: F64, positives: str, negatives: str) -> Curves:
    """ROC and precision-recall of `score` for telling `positive` from the rest.

    Args:
        positive: bool [N].
        score: float64 [N], higher speaks for positive.
        positives, negatives: what they are called where there are none.
    """
    missing = positives if not positive.any() else negatives if positive.all() else None
    if missing is not None:
        none = Curve(problem=f"cannot be computed: no {missing}")
        return Curves(roc=none, precision_recall=none)
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    false_rate, recall, at = roc_curve(positive, score)
    roc = _curve(false_rate, recall, at, roc_auc_score(positive, score))
    precision, recall, at = precision_recall_curve(positive, score, drop_intermediate=True)
    area = average_precision_score(positive, score)
    return Curves(roc=roc, precision_recall=_curve(recall, precision, np.append(at, np.inf), area))


def calibration(logits: npt.NDArray[np.floating[Any]], labels: Labels, temperature: float) -> CalibrationFigures | None:
    """How far the scores at this temperature can be taken at their word. None without finite scores."""
    finite = np.isfinite(logits).all(axis=1)
    logits, labels = logits[finite], labels[finite]
    if not len(labels):
        return None
    from sklearn.metrics import brier_score_loss, log_loss

    probabilities = softmax(logits, temperature)
    every = np.arange(probabilities.shape[1])
    bins = reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    gaps = [b.pictures * abs(b.score - (b.right.share or 0.0)) for b in bins]
    one_hot = np.eye(len(every))[labels]
    return CalibrationFigures(
        ece=_r(sum(gaps) / len(labels)),
        nll=_r(log_loss(labels, probabilities, labels=every)),
        brier=_r(brier_score_loss(one_hot, probabilities, scale_by_half=False)),
        bins=bins,
    )


def reliability(score: F64, right: Mask) -> tuple[Bin, ...]:
    """The pictures in bins by their score; empty bins are left out."""
    edges = np.linspace(0, 1, BINS + 1)
    where = np.clip(np.digitize(score, edges[1:-1], right=True), 0, BINS - 1)
    found = []
    for i in np.unique(where):
        inside = where == i
        found.append(
            Bin(
                low=_r(edges[i]),
                high=_r(edges[i + 1]),
                pictures=int(inside.sum()),
                score=_r(score[inside].mean()),
                right=share(right[inside].sum(), inside.sum()),
            )
        )
    return tuple(found)


def trade_off(pass_score: F64, is_good: Mask) -> tuple[TradeOff, ...]:
    """What each `pass_min` would do, from the lowest possible to 1.

    Args:
        pass_score: float64 [N], the highest `pass_min` at which the picture still passes, 0 where none.
        is_good: bool [N].
    """
    good, bad = np.sort(pass_score[is_good]), np.sort(pass_score[~is_good])
    just_above = (np.floor(bad * 1e6) + 1) / 1e6  # as six digits hold it
    levels = np.unique(np.clip(np.concatenate([good, just_above, [PASS_LEAST, 1.0]]), PASS_LEAST, 1.0))
    rejects = np.searchsorted(good, levels, side="left")
    escapes = len(bad) - np.searchsorted(bad, levels, side="left")
    if len(levels) > _CURVE_POINTS:
        even = np.linspace(0, len(levels) - 1, _CURVE_POINTS).astype(int)
        steps = np.flatnonzero(np.diff(escapes))
        kept = np.unique(np.concatenate([even, steps, steps + 1]))
        levels, rejects, escapes = levels[kept], rejects[kept], escapes[kept]
    return tuple(
        TradeOff(pass_min=float(t), escapes=int(e), false_rejects=int(r))
        for t, e, r in zip(levels, escapes, rejects, strict=True)
    )


def choose_pass_min(good: F64, bad: F64, max_escapes: float) -> float | None:
    """The lowest `pass_min` at which at most `max_escapes` of the bad pictures pass, with a margin; None if none does.

    It lies midway between the highest score that must not pass and the lowest good one above it. Where
    no bad picture may pass it is at least `PASS_FLOOR`.

    Args:
        good, bad: float64, the pass scores (see `trade_off`) of good and of bad validation pictures.
        max_escapes: share of the bad ones, 0 up to 1.
    """
    allowed = math.floor(max_escapes * len(bad) + 1e-9)
    worst = float(np.sort(bad)[::-1][allowed]) if allowed < len(bad) else 0.0
    if worst >= 1:
        return None
    above = good[good > worst]
    middle = (worst + float(above.min())) / 2 if len(above) else (worst + 1) / 2
    chosen = max(middle, PASS_FLOOR if allowed == 0 else PASS_LEAST)
    rounded = math.ceil(chosen * 1e6) / 1e6  # away from zero, so that rounding lets nothing pass
    return min(1.0, rounded)


def _curve(x: F64, y: F64, threshold: F64, area: float) -> Curve:
    return Curve(
        x=tuple(_r(v) for v in x),
        y=tuple(_r(v) for v in y),
        threshold=tuple(_r(v) if math.isfinite(v) else None for v in threshold),
        area=_r(area),
    )


def _r(value: float) -> float:
    return round(float(value), 6)
