"""From logits to a decision, by the roles and thresholds of the bundle."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from inspectd.config import DecisionConfig
from inspectd.engine.base import Logits
from inspectd.errors import ConfigError
from inspectd.frame import Clock
from inspectd.model.bundle import Manifest, Thresholds
from inspectd.observe.ledger import Ticket
from inspectd.verdict.schema import NoResultReason, VerdictKind


@dataclass(frozen=True, slots=True)
class Decision:
    verdict: VerdictKind
    reason: NoResultReason | None = None
    label: str | None = None
    score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """A decision about one ROI of one frame, on its way to the publisher.

    `arrival` is monotonic seconds, `captured_at` Unix seconds; stages that were not reached are 0.
    """

    ticket: Ticket
    decision: Decision
    model: str  # bundle hash prefix
    index: int
    pts: float | None
    clock: Clock
    captured_at: float
    arrival: float
    decode_s: float = 0.0
    queue_s: float = 0.0
    engine_s: float = 0.0


def no_result(reason: NoResultReason) -> Decision:
    return Decision("no_result", reason)


class Decider:
    """The decision rule of one bundle. Stateless after construction; callable from any thread."""

    def __init__(self, manifest: Manifest, overrides: DecisionConfig) -> None:
        thresholds = merged_thresholds(manifest, overrides)
        self._names = [c.name for c in manifest.classes]
        roles = np.array([c.role for c in manifest.classes])
        self._ok, self._defect, self._empty = roles == "ok", roles == "defect", roles == "empty"
        # Infinity where a class is no defect, so that one comparison serves all.
        self._fail_at = np.array(
            [
                thresholds.fail.get(c.name, thresholds.fail_default) if c.role == "defect" else np.inf
                for c in manifest.classes
            ]
        )
        self._pass_min, self._empty_min = thresholds.pass_min, thresholds.empty_min
        self._temperature = manifest.temperature

    def decide(self, logits: Logits) -> Decision:
        """Decide on one crop from its logits, float32 [classes].

        Any defect at its threshold fails, whatever else scores; only then may ok classes pass, and the
        empty classes say that there is no part; either only if one of them is the top class, so that a
        verdict and its label agree. Scores that are no finite numbers, or too few, never decide anything.
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


def merged_thresholds(manifest: Manifest, overrides: DecisionConfig) -> Thresholds:
    """The bundle's thresholds with the configuration's on top.

    Raises:
        ConfigError: `[decision.fail]` names a class that is no defect class of the bundle.
    """
    defects = {c.name for c in manifest.classes if c.role == "defect"}
    if unknown := sorted(set(overrides.fail) - defects):
        raise ConfigError(f"decision.fail.{unknown[0]}: no defect class of the bundle; it has {sorted(defects)}")
    given = overrides.model_dump(exclude_none=True)
    return manifest.thresholds.model_copy(update={**given, "fail": {**manifest.thresholds.fail, **overrides.fail}})
