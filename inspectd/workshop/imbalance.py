"""Classes of unequal size: who counts how much, and who is seen how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inspectd.workshop.options import Imbalance

_FOCAL_GAMMA = 2.0  # Lin et al. 2017, "Focal Loss for Dense Object Detection", section 4.1

_NEARLY_EQUAL, _VERY_UNEQUAL = 1.5, 8.0  # largest class over smallest


@dataclass(frozen=True, slots=True)
class ImbalancePlan:
    """What is done about unequal classes, and why in one line."""

    kind: Literal["none", "weights", "balanced", "focal"]
    why: str
    weights: tuple[float, ...] | None = None  # per class; their mean over the pictures is 1

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Mean loss of a batch: float32 logits [B, classes], labels int64 [B]."""
        each = nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
        if self.kind == "focal":
            sure = torch.softmax(logits, 1).gather(1, labels[:, None]).squeeze(1)
            each = each * (1 - sure) ** _FOCAL_GAMMA
        if self.weights is not None:
            each = each * each.new_tensor(self.weights)[labels]
        return each.mean()

    def order(self, labels: npt.NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """Which pictures an epoch shows, int64 [N]: each once, or each class equally often."""
        if self.kind != "balanced":
            return torch.randperm(len(labels), generator=generator)
        counts = np.bincount(labels)
        chance = torch.from_numpy(1.0 / counts[labels])
        return torch.multinomial(chance, len(labels), replacement=True, generator=generator)


def plan_for(labels: npt.NDArray[np.int64], names: Sequence[str], wanted: Imbalance) -> ImbalancePlan:
    """The plan for these training labels; `auto` goes by how unequal the classes are.

    Up to 1.5 times nothing; up to 8 times weights by the square root of rarity, so that a rare defect counts
    more, but not as if it were common; beyond that every class is also seen equally often, because a batch
    would rarely hold one of the rare ones.
    """
    counts = np.maximum(np.bincount(labels, minlength=len(names)), 1)
    ratio = float(counts.max() / counts.min())
    words = f"{names[int(counts.argmax())]} has {counts.max()} pictures, {names[int(counts.argmin())]} {counts.min()}"
    rarity = np.sqrt(counts.sum() / counts)
    weights = tuple(float(w) for w in rarity / rarity[labels].mean())
    if wanted == "auto":
        if ratio <= _NEARLY_EQUAL:
            return ImbalancePlan("none", f"classes are nearly equal: {words}")
        if ratio <= _VERY_UNEQUAL:
            return ImbalancePlan("weights", f"classes are unequal: {words}; the loss weighs them", weights)
        return ImbalancePlan("balanced", f"classes are very unequal: {words}; each is drawn equally often")
    return ImbalancePlan(wanted, f"as asked; {words}", weights if wanted in ("weights", "focal") else None)
