"""The gate of a deployable copy: it must judge as the network that was trained does, or it does not ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from inspectd.model.calibrate import Labels, operating_point, softmax, summary
from inspectd.model.manifest import ClassSpec, Thresholds

Logits = npt.NDArray[np.float32]

TOLERANCE: dict[str, float] = {"torch": 1e-5, "onnx": 1e-3, "openvino": 0.05, "openvino-int8": 0.2}
"""Root mean square difference of the logits from torch's in float32, relative to the spread of the latter.

bf16 has 8 bits of precision and 18 layers to lose them in: 0.5 to 2 % are seen. INT8 with ranges that
clip nothing: 3 to 12 %."""

MAX_RECALL_LOSS = 0.005
"""Recall that a defect class may lose to a copy: half a point."""


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the gate found. `problems` is empty where the copy may ship; each says by how much it fails."""

    copy: str
    pictures: int
    logit_error: float  # see TOLERANCE
    worst_logit_error: float  # largest single difference, in the same unit
    agreement: float  # share of pictures with the same top class
    recall_change: dict[str, float]  # per class, copy minus torch
    escapes: int
    escapes_of_torch: int
    problems: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "problems": list(self.problems), "passed": self.passed}


def judge_copy(
    copy: str,
    eager: Logits,
    given: Logits,
    labels: Labels,
    classes: Sequence[ClassSpec],
    temperature: float,
    thresholds: Thresholds,
) -> GateReport:
    """Compare a copy's logits [N, classes] with torch's on pictures that were not trained on.

    Refused are logits that are no numbers or too far off, a defect class that loses more than half a point
    of recall, and any picture more that wrongly passes at the operating point.
    """
    if not np.isfinite(given).all():
        broken = int((~np.isfinite(given).all(axis=1)).sum())
        return GateReport(copy, len(labels), np.inf, np.inf, 0.0, {}, 0, 0, (f"{broken} pictures score no numbers",))
    spread = max(float(eager.std()), 1e-12)
    difference = np.abs(given - eager) / spread
    error = float(np.sqrt((difference**2).mean()))
    recall, own = (summary(values, labels, classes)["recall"] for values in (given, eager))
    change = {name: recall[name] - own[name] for name in own if own[name] is not None}
    escapes, of_torch = (
        operating_point(softmax(values, temperature), labels, classes, thresholds)["escapes"]
        for values in (given, eager)
    )
    problems = [
        f"{spec.name} loses {-100 * change[spec.name]:.1f} points of recall, {100 * MAX_RECALL_LOSS:.1f} are allowed"
        for spec in classes
        if spec.role == "defect" and change.get(spec.name, 0.0) < -MAX_RECALL_LOSS
    ]
    if error > TOLERANCE[copy]:
        problems.append(f"logits are off by {error:.1%}, {TOLERANCE[copy]:.1%} are allowed")
    if escapes > of_torch:
        problems.append(f"{escapes} pictures would wrongly pass, {of_torch} with torch")
    return GateReport(
        copy,
        len(labels),
        round(error, 6),
        round(float(difference.max()), 6),
        round(float((given.argmax(1) == eager.argmax(1)).mean()), 4),
        {name: round(value, 4) for name, value in change.items()},
        escapes,
        of_torch,
        tuple(problems),
    )
