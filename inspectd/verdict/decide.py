"""From scores to a decision, by the roles and thresholds of the bundle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from inspectd.config import DecisionConfig
from inspectd.engine.base import Logits, Scores
from inspectd.errors import ConfigError
from inspectd.frame import Box, Clock, Frame
from inspectd.model.manifest import Manifest, Thresholds
from inspectd.observe.ledger import Ticket
from inspectd.trigger import Trigger
from inspectd.verdict.schema import BoxScore, NoResultReason, VerdictKind

DISPLAY_FLOOR = 0.2
"""Weaker boxes are not published, unless they failed a part or are the strongest that kept it from passing."""

MAX_BOXES = 50
"""Boxes in one verdict, strongest first; only when more than that failed a part are there more."""


@dataclass(frozen=True, slots=True)
class Decision:
    verdict: VerdictKind
    reason: NoResultReason | None = None
    label: str | None = None
    score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    boxes: tuple[BoxScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """By what a decision was made; one object per ROI of a line-up, so that no verdict mixes two."""

    model: str  # SHA-256 prefix of the bundle
    config: str  # SHA-256 prefix of the effective configuration
    recipe: str | None = None


@dataclass(slots=True)
class Outcome:
    """A decision about one ROI of one frame, on its way to the publisher.

    `arrival` is monotonic seconds, before which the picture had been on its way for `waited_s`; `captured_at` is Unix
    seconds; stages that were not reached are 0.
    """

    ticket: Ticket
    decision: Decision
    origin: Origin
    index: int
    pts: float | None
    clock: Clock
    captured_at: float
    arrival: float
    waited_s: float = 0.0
    decode_s: float = 0.0
    queue_s: float = 0.0
    engine_s: float = 0.0
    triggers: tuple[Trigger, ...] = ()
    frame: Frame | None = None  # kept only where evidence may be wanted of it
    area: Box | None = None
    evidence: str | None = None


def no_result(reason: NoResultReason) -> Decision:
    return Decision("no_result", reason)


class Decider:
    """The decision rule of one bundle. Stateless after construction; callable from any thread.

    Raises:
        ConfigError: the configuration's thresholds do not fit the bundle.
    """

    def __init__(self, manifest: Manifest, overrides: DecisionConfig) -> None:
        thresholds = merged_thresholds(manifest, overrides)
        make = _ClassifierRule if manifest.detector is None else _DetectorRule
        self._rule: _Rule = make(manifest, thresholds)
        self._whole = Box(0, 0, manifest.preprocess.width, manifest.preprocess.height)

    def decide(self, scores: Scores, area: Box | None = None) -> Decision:
        """Decide on one crop from what the network gave for it, float32 [*manifest.output_shape].

        `area` is the crop's place in the frame: a detector's boxes are told in frame pixels, or without
        it in network-input pixels. Scores that are no finite numbers, or too few, never decide anything.
        """
        return self._rule.decide(scores, area or self._whole)


class _Rule(Protocol):
    def decide(self, scores: Scores, area: Box) -> Decision: ...


class _ClassifierRule:
    """Each class has a probability; a crop has no places in it."""

    def __init__(self, manifest: Manifest, thresholds: Thresholds) -> None:
        self._names = [c.name for c in manifest.classes]
        roles = np.array([c.role for c in manifest.classes])
        self._ok, self._empty = roles == "ok", roles == "empty"
        self._fail_at = _fail_thresholds(manifest, thresholds)
        self._pass_min, self._empty_min = thresholds.pass_min, thresholds.empty_min
        self._temperature = manifest.temperature

    def decide(self, logits: Logits, area: Box) -> Decision:
        """Decide from logits, float32 [classes].

        Any defect at its threshold fails, whatever else scores; only then may ok classes pass, and the
        empty classes say that there is no part; either only if one of them is the top class, so that a
        verdict and its label agree.
        """
        if logits.shape != (len(self._names),) or not np.isfinite(logits).all():
            return no_result("engine_error")
        # The largest is taken off before the division, so that no temperature can make infinity of it.
        shifted = logits.astype(np.float64)
        shifted -= shifted.max()
        exponents = np.exp(shifted / self._temperature)
        probabilities = exponents / exponents.sum()
        published = probabilities.round(6)
        scores = dict(zip(self._names, published.tolist(), strict=True))
        # The published figure counts too: nobody shall read a defect at its threshold beside a pass.
        if (failing := np.maximum(probabilities, published) >= self._fail_at).any():
            worst = self._names[int(np.where(failing, probabilities, -1.0).argmax())]
            return Decision("fail", None, worst, scores[worst], scores)
        index = int(probabilities.argmax())
        top = self._names[index]
        if self._ok[index] and probabilities[self._ok].sum() >= self._pass_min:
            return Decision("pass", None, top, scores[top], scores)
        if self._empty[index] and probabilities[self._empty].sum() >= self._empty_min:
            return Decision("no_result", None, top, scores[top], scores)
        return Decision("no_result", "uncertain", top, scores[top], scores)


class _DetectorRule:
    """Each box has a class and a score; the strongest ones decide.

    A defect class's published score is that of its strongest box, the ok class's is what is left of 1 by
    the strongest of all.
    """

    def __init__(self, manifest: Manifest, thresholds: Thresholds) -> None:
        self._names = [c.name for c in manifest.classes]
        self._fail_at = _fail_thresholds(manifest, thresholds)
        # From here on a box stands against a pass, whatever its class.
        self._doubt_at = 1 - thresholds.pass_min
        self._shape = manifest.output_shape
        spec = manifest.preprocess
        self._input = np.array([spec.width, spec.height, spec.width, spec.height], np.float64)

    def decide(self, detections: Scores, area: Box) -> Decision:
        """Decide from detections, float32 [max_detections, 6]; see `DetectorSpec` for their columns.

        Any box at its class's threshold fails. A crop passes when no box stands against it, and none that
        was left out of a full list can: those are no stronger than its weakest. Rows that make no sense
        are an engine error, for the next one may be a missed defect.
        """
        if detections.shape != self._shape or not np.isfinite(detections).all():
            return no_result("engine_error")
        used = detections[detections[:, 5] != -1].astype(np.float64)
        if not self._plausible(used) or detections[detections[:, 5] == -1, 4].any():
            return no_result("engine_error")
        used = used[(-used[:, 4]).argsort(kind="stable")]
        labels, values = used[:, 5].astype(np.int64), used[:, 4]
        published = values.round(6)
        reached = np.maximum(values, published)  # nobody shall read a defect at its threshold beside a pass
        failing = reached >= self._fail_at[labels]
        doubtful = reached >= self._doubt_at
        scores = self._strongest(labels, published)
        shown = doubtful & (reached >= min(DISPLAY_FLOOR, reached.max(initial=0.0)))
        boxes = self._boxes(used, published, failing, shown, area)
        if failing.any():
            worst = int(failing.argmax())
            return Decision("fail", None, self._names[labels[worst]], float(published[worst]), scores, boxes)
        hidden = reached[-1] if len(used) == self._shape[0] else 0.0
        if not doubtful.any() and hidden < self._fail_at.min():
            return Decision("pass", None, self._names[0], scores[self._names[0]], scores)
        return Decision("no_result", "uncertain", self._names[labels[0]], float(published[0]), scores, boxes)

    def _plausible(self, rows: npt.NDArray[np.float64]) -> bool:
        left, top, right, bottom, score, label = rows.T
        known = (label == np.rint(label)) & (label >= 1) & (label < len(self._names))
        return bool((known & (score >= 0) & (score <= 1) & (right >= left) & (bottom >= top)).all())

    def _strongest(self, labels: npt.NDArray[np.int64], published: npt.NDArray[np.float64]) -> dict[str, float]:
        strongest = np.zeros(len(self._names))
        np.maximum.at(strongest, labels, published)
        strongest[0] = 1 - strongest.max()
        return dict(zip(self._names, strongest.round(6).tolist(), strict=True))

    def _boxes(
        self,
        rows: npt.NDArray[np.float64],
        published: npt.NDArray[np.float64],
        failing: npt.NDArray[np.bool_],
        shown: npt.NDArray[np.bool_],
        area: Box,
    ) -> tuple[BoxScore, ...]:
        """Every box that fails the crop, and of the others to be shown as many as there is room for."""
        room = MAX_BOXES - int(failing.sum())
        chosen = np.flatnonzero(failing | (shown & (np.cumsum(shown & ~failing) <= room)))
        size, origin = np.array([area.width, area.height] * 2), np.array([area.x, area.y] * 2)
        corners = origin + np.clip(rows[chosen, :4], 0, self._input) * (size / self._input)
        return tuple(
            BoxScore(
                label=self._names[int(rows[index, 5])],
                score=float(published[index]),
                box=(round(left, 2), round(top, 2), round(right - left, 2), round(bottom - top, 2)),
            )
            for index, (left, top, right, bottom) in zip(chosen, corners.tolist(), strict=True)
        )


def _fail_thresholds(manifest: Manifest, thresholds: Thresholds) -> npt.NDArray[np.float64]:
    """[classes]; infinity where a class is no defect, so that one comparison serves all."""
    return np.array(
        [
            thresholds.fail.get(c.name, thresholds.fail_default) if c.role == "defect" else np.inf
            for c in manifest.classes
        ]
    )


def merged_thresholds(manifest: Manifest, overrides: DecisionConfig) -> Thresholds:
    """The bundle's thresholds with the configuration's on top.

    Raises:
        ConfigError: `[decision.fail]` names a class that is no defect class of the bundle, or a threshold
            asks for boxes that the bundle's detector does not give out.
    """
    defects = {c.name for c in manifest.classes if c.role == "defect"}
    if unknown := sorted(set(overrides.fail) - defects):
        raise ConfigError(f"decision.fail.{unknown[0]}: no defect class of the bundle; it has {sorted(defects)}")
    given = overrides.model_dump(exclude_none=True)
    merged = manifest.thresholds.model_copy(update={**given, "fail": {**manifest.thresholds.fail, **overrides.fail}})
    if manifest.detector is not None:
        _refuse_unseen(merged, manifest.detector.score_floor)
    return merged


def _refuse_unseen(thresholds: Thresholds, floor: float) -> None:
    """A box below the floor is never seen, so a threshold there would promise what nobody keeps."""
    if thresholds.pass_min > 1 - floor:
        raise ConfigError(
            f"decision.pass_min: {thresholds.pass_min} cannot be kept by this detector, at most {1 - floor:g}"
        )
    lowest = {"fail_default": thresholds.fail_default, **{f"fail.{k}": v for k, v in thresholds.fail.items()}}
    for key, value in lowest.items():
        if value < floor:
            raise ConfigError(f"decision.{key}: {value} cannot be kept by this detector, {floor} at least")
