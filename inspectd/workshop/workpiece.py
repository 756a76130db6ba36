"""What the steps of one training share: the pictures, read and checked, and what was decided about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
import torch

from inspectd.model.data import Dataset, Pictures, open_dataset
from inspectd.model.preprocess import PreprocessSpec
from inspectd.model.survey import Finding, survey
from inspectd.progress import Tell
from inspectd.workshop.distributed import World
from inspectd.workshop.fill import Filled, fill_small_classes
from inspectd.workshop.imbalance import ImbalancePlan, plan_for
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.training import refuse_uneven

log = structlog.get_logger(__name__)


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
    def fingerprint(self) -> str:
        return self.dataset.fingerprint

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
    refuse_uneven(options, len(pictures["train"]), world)
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
