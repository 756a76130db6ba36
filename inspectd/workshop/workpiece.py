"""What the steps of one training share: the pictures, read and checked, and what was decided about them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch

from inspectd.errors import UsageError
from inspectd.model.data import Dataset, Pictures, open_dataset
from inspectd.model.preprocess import PreprocessSpec
from inspectd.model.survey import Finding, survey
from inspectd.progress import Tell
from inspectd.workshop.distributed import World
from inspectd.workshop.fill import Filled, fill_small_classes
from inspectd.workshop.imbalance import ImbalancePlan, plan_for
from inspectd.workshop.options import TrainOptions

log = structlog.get_logger(__name__)

_SETTLE_BATCH = 32
_FINISH_SHARE, _FINISH_MOST_S = 0.25, 60.0  # of a time budget, kept for quantising and judging


@dataclass(frozen=True, slots=True)
class Workpiece:
    """What all steps of one training share."""

    dataset: Dataset
    spec: PreprocessSpec
    pictures: dict[str, Pictures]  # "train", "val"; all of them real
    filled: Filled  # what is learnt from: "train", and what was simulated
    plan: ImbalancePlan
    options: TrainOptions
    device: torch.device
    world: World

    @property
    def learnt_from(self) -> Pictures:
        return self.filled.pictures


def prepare(data: Path, options: TrainOptions, world: World, tell: Tell) -> Workpiece:
    """Read the pictures and decide what depends on them.

    Raises:
        DataError: the pictures cannot be used.
        UsageError: the batch cannot be shared by so many processes.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    device = world.device(options.device)
    spec = PreprocessSpec(width=options.size, height=options.size)
    dataset = open_dataset(
        data,
        seed=options.seed,
        val_fraction=options.val_fraction,
        ok=options.ok,
        empty=options.empty,
        groups=options.group_by,
        spec=spec,
        on_progress=lambda done, total: tell("reading pictures", done, total),
    )
    pictures = {split: dataset.pictures[split] for split in ("train", "val")}
    if min(options.batch_size, len(pictures["train"])) % world.size:
        raise UsageError(f"train: --batch-size {options.batch_size} cannot be shared by {world.size} processes")
    if world.main:
        _report(survey(dataset))
    filled = fill_small_classes(
        pictures["train"], dataset.classes, options.simulate, np.random.default_rng(options.seed)
    )
    if options.simulate and world.main:
        log.info("simulated_defects", note=filled.note)
    plan = plan_for(filled.pictures.labels, [spec.name for spec in dataset.classes], options.imbalance)
    log.info("imbalance", plan=plan.kind, why=plan.why)
    return Workpiece(dataset, spec, pictures, filled, plan, options, device, world)


def _report(findings: list[Finding]) -> None:
    for finding in findings:
        (log.info if finding.severity == "note" else log.warning)(f"data_{finding.kind}", note=finding.message)


def identity(piece: Workpiece) -> dict[str, Any]:
    """What a checkpoint must have been made with to be continued."""
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(piece.options).items()}
    return {"data": piece.dataset.fingerprint, "processes": piece.world.size, "torch": torch.__version__, **arguments}
