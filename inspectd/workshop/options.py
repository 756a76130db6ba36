"""How to train: one frozen object, checked whole before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from inspectd.errors import UsageError

if TYPE_CHECKING:  # it brings torch, and the command line only wants the words below
    from inspectd.model.network import StartWeights

Task = Literal["classify", "detect"]
Stages = Literal["auto", "head", "progressive", "all"]
OptimiserName = Literal["auto", "adamw", "muon", "sgd"]
Metric = Literal["worst-recall", "macro-recall", "accuracy", "auc", "loss"]
Imbalance = Literal["auto", "none", "weights", "balanced", "focal"]
Preset = Literal["industrial", "texture", "none"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "f32", "bf16", "fp16"]
ExportTarget = Literal["openvino-int8", "openvino", "onnx", "torch"]

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Everything that decides what comes out, apart from the pictures and the machine."""

    task: Task = "classify"
    weights: StartWeights = "none"
    stages: Stages = "auto"
    """`head`: only the last layer, on cached features. `progressive`: then the rest, from the head down.
    `all`: everything from the first step. `auto`: progressive from given weights, all from none."""
    epochs: int = 20
    batch_size: int = 32  # pictures per step, over all processes
    accumulate: int = 1  # micro-batches that a step is cut into, where memory is short
    learning_rate: float | None = None  # peak; None is the optimiser's own
    optimiser: OptimiserName = "auto"
    layer_decay: float = 0.7  # of the learning rate, from each layer group to the one before it; 1 from no weights
    ema_decay: float = 0.99  # of the averaged weights, which are the ones that are judged and kept; 0 is none
    label_smoothing: float = 0.05
    dropout: float = 0.0  # before the last layer
    patience: int | None = None  # epochs without a better score before it stops; None is half of all
    metric: Metric = "worst-recall"
    imbalance: Imbalance = "auto"
    augment: Preset = "industrial"
    simulate: int = 0
    """Defect classes with fewer training pictures get simulated ones up to this number; 0 is none."""
    ok: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    group_by: str | None = None
    size: int = 224
    seed: int = 0
    val_fraction: float = 0.2
    max_false_rejects: float = 0.1
    """Share of good validation pictures that may be given up so that no bad one passes."""
    time_budget_s: float | None = None  # the schedule is shortened to end in this time
    device: Device = "auto"
    precision: Precision = "auto"
    threads: int = 0  # of torch; 0 leaves it its own choice
    int8: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise UsageError("train: needs at least one epoch and a batch of two")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise UsageError(f"train: learning rate {self.learning_rate} is not between 0 and 1")
        if not 32 <= self.size <= 2048 or self.size % 2:
            raise UsageError(f"train: size {self.size} is not an even number from 32 to 2048")
        if not 1 <= self.accumulate <= self.batch_size:
            raise UsageError(f"train: accumulate {self.accumulate} is not between 1 and the batch size")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"train: layer decay {self.layer_decay} is not above 0 and at most 1")
        if self.patience is not None and self.patience < 1:
            raise UsageError("train: patience is counted in epochs, one at least")
        for name, value, most in (
            ("EMA decay", self.ema_decay, 0.99999),
            ("label smoothing", self.label_smoothing, 0.5),
            ("dropout", self.dropout, 0.9),
            ("max false rejects", self.max_false_rejects, 0.9),
            ("seed", self.seed, 2**63 - 1),
            ("threads", self.threads, 256),
        ):
            if not 0 <= value <= most:
                raise UsageError(f"train: {name} {value} is not between 0 and {most}")
        if not 0.02 <= self.val_fraction <= 0.5:
            raise UsageError(f"train: val fraction {self.val_fraction} is not between 0.02 and 0.5")
        if self.time_budget_s is not None and self.time_budget_s <= 0:
            raise UsageError("train: the time budget is over before it begins")
        self._refuse_unknown_words()

    def _refuse_unknown_words(self) -> None:
        choices = {
            "task": Task, "stages": Stages, "optimiser": OptimiserName, "metric": Metric, "imbalance": Imbalance,
            "augment": Preset, "device": Device, "precision": Precision,
        }  # fmt: skip
        for name, choice in choices.items():
            if (value := getattr(self, name)) not in get_args(choice):
                raise UsageError(f"train: {name} {value!r} is none of {', '.join(get_args(choice))}")

    @property
    def from_scratch(self) -> bool:
        return self.weights == "none"

    @property
    def stage_plan(self) -> Literal["head", "progressive", "all"]:
        """What `auto` means here: a head is fitted first where there are features, and only a last layer can be."""
        if self.stages != "auto":
            return self.stages
        return "all" if self.from_scratch or self.task == "detect" else "progressive"

    @property
    def optimiser_plan(self) -> Literal["adamw", "muon", "sgd"]:
        """What `auto` means here: Muon learns much faster from nothing, and of a detector pyramid and heads are always
        nothing yet; AdamW disturbs given weights less."""
        if self.optimiser != "auto":
            return self.optimiser
        return "muon" if self.from_scratch or self.task == "detect" else "adamw"

    @property
    def peak_rate(self) -> float:
        new = self.from_scratch
        defaults = {"adamw": 1e-3 if new else 3e-4, "muon": 2e-3 if new else 1e-3, "sgd": 0.05 if new else 0.01}
        return self.learning_rate or defaults[self.optimiser_plan]

    @property
    def patience_plan(self) -> int:
        return self.patience or max(5, self.epochs // 2)


def parse_duration(text: str) -> float:
    """Seconds from `90`, `90s`, `10m` or `1.5h`.

    Raises:
        UsageError: something else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if found is None or not float(found[1]):
        raise UsageError(f"{text!r} is no duration; write 90s, 10m or 1.5h")
    return float(found[1]) * _UNITS_S[found[2]]
