"""One figure that says which epoch is best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from inspectd.model.calibrate import lowest_kept, softmax
from inspectd.model.manifest import ClassSpec
from inspectd.workshop.options import Metric
from inspectd.workshop.task import Score

F64 = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def score(
    logits: npt.NDArray[np.floating[Any]],
    labels: Labels,
    classes: Sequence[ClassSpec],
    metric: Metric,
    max_false_rejects: float,
) -> Score:
    """The chosen metric first; equal ones are told apart by mean recall and then by the loss.

    `worst-recall`: the share that does not pass of the defect class (or empty station) that passes most
    easily, with the pass threshold where `max_false_rejects` of the good ones are given up. Without a good
    class, the lowest recall of any class.
    """
    probabilities = softmax(logits)
    rows = np.arange(len(labels))
    loss = float(-np.log(np.maximum(probabilities[rows, labels], 1e-12)).mean())
    right = probabilities.argmax(axis=1) == labels
    recall = [float(right[labels == c].mean()) for c in range(len(classes)) if (labels == c).any()]
    figures = {
        "worst-recall": worst_recall(probabilities, labels, classes, max_false_rejects),
        "macro-recall": float(np.mean(recall)),
        "accuracy": float(right.mean()),
        "auc": _auc(probabilities, labels, classes),
        "loss": -loss,
    }
    columns = {"val loss": loss, "accuracy": figures["accuracy"], metric: figures[metric]}
    if metric == "loss":
        del columns["loss"]
    return Score((figures[metric], figures["macro-recall"], -loss), columns)


def worst_recall(probabilities: F64, labels: Labels, classes: Sequence[ClassSpec], max_false_rejects: float) -> float:
    """See `score`. Probabilities float64 [N, classes]."""
    ok = np.array([spec.role == "ok" for spec in classes])
    good = ok[labels]
    if not good.any():
        right = probabilities.argmax(axis=1) == labels
        return min(float(right[labels == c].mean()) for c in range(len(classes)) if (labels == c).any())
    ok_score = probabilities[:, ok].sum(axis=1)
    caught = ok_score < lowest_kept(ok_score[good], max_false_rejects)
    return min(
        (float(caught[labels == c].mean()) for c in range(len(classes)) if not ok[c] and (labels == c).any()),
        default=0.0,
    )


def _auc(probabilities: F64, labels: Labels, classes: Sequence[ClassSpec]) -> float:
    """Area under the ROC curve of "must not pass"; 0 where there is only one side."""
    ok = np.array([spec.role == "ok" for spec in classes])
    bad = ~ok[labels]
    if bad.all() or not bad.any():
        return 0.0
    return float(roc_auc_score(bad, 1 - probabilities[:, ok].sum(axis=1)))
