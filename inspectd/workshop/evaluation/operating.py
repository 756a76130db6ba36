"""The operating point: the `pass_min` that keeps a stated escape rate on validation pictures, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inspectd.config import DecisionConfig
from inspectd.model.calibrate import Labels
from inspectd.model.manifest import Manifest
from inspectd.verdict.decide import Decider
from inspectd.workshop.evaluation.figures import OperatingPoint, VerdictFigures
from inspectd.workshop.evaluation.judged import Judged, pass_scores, role_mask, verdict_figures, verdict_of
from inspectd.workshop.evaluation.statistics import choose_pass_min


def choose_operating_point(
    max_escapes: float,
    validation: Sequence[Judged],
    validation_labels: Labels,
    chosen_on: str,
    here: Sequence[Judged],
    labels: Labels,
    manifest: Manifest,
) -> OperatingPoint:
    """Choose on validation for the worst of the copies, and state what that does there and here.

    Args:
        max_escapes: share of the bad validation pictures that may pass.
        validation, here: what each copy says of the validation pictures, and of those of the report.
        validation_labels, labels: int64 [N].
        chosen_on: the validation pictures in words.
    """
    good = role_mask(validation_labels, manifest, "ok")

    def without(problem: str) -> OperatingPoint:
        return OperatingPoint(max_escapes=max_escapes, chosen_on=chosen_on, pass_min=None, problem=problem)

    if good.all() or not good.any():
        return without(f"cannot be chosen: no {'bad' if good.all() else 'good'} validation pictures")
    scores = np.stack([pass_scores(judged.logits, manifest) for judged in validation])  # [copies, N]
    # Whatever copy runs: a bad picture counts with the score that passes most easily, a good one with the least.
    pass_min = choose_pass_min(scores[:, good].min(axis=0), scores[:, ~good].max(axis=0), max_escapes)
    if pass_min is None:
        return without("cannot be chosen: a bad validation picture is as sure of being good as can be")
    rates = {judged.name: apply_pass_min(judged, validation_labels, manifest, pass_min) for judged in validation}
    return OperatingPoint(
        max_escapes=max_escapes,
        chosen_on=chosen_on,
        pass_min=pass_min,
        problem=None,
        validation=max(rates.values(), key=lambda figures: (figures.escapes.count, figures.false_rejects.count)),
        here={judged.name: apply_pass_min(judged, labels, manifest, pass_min) for judged in here},
    )


def apply_pass_min(judged: Judged, labels: Labels, manifest: Manifest, pass_min: float) -> VerdictFigures:
    """What the daemon would decide with this `pass_min` in its configuration."""
    overrides = DecisionConfig(pass_min=pass_min)
    decider = Decider(manifest, overrides)
    verdicts = [verdict_of(decider.decide(row)) for row in judged.logits]
    return verdict_figures(verdicts, labels, manifest, overrides)
