"""`inspectd train --dry-run` and `--preview`: what training would do, without doing it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from inspectd.errors import UsageError
from inspectd.model.network import build_resnet18
from inspectd.model.survey import survey
from inspectd.progress import Tell
from inspectd.workshop.augment import Augmenter
from inspectd.workshop.distributed import World
from inspectd.workshop.loop import fit
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.place import refuse_other_things
from inspectd.workshop.preview import write_preview
from inspectd.workshop.train import classify_task
from inspectd.workshop.workpiece import Workpiece, prepare

_STEPS = 3  # that are timed, after one that warms up


def rehearse(
    data: Path, bundle: Path, options: TrainOptions, preview: Path | None, tell: Tell, say: Callable[[str], None]
) -> None:
    """Read and check the pictures; write the sheet of augmented ones, or time a few steps and say what would come.

    Nothing is written but the sheet.

    Raises:
        DataError: the pictures cannot be used, or `bundle` holds something else.
        UsageError: a detector is asked for, which has no rehearsal, or `bundle` lies among the pictures.
    """
    if options.task == "detect":
        raise UsageError("train: --dry-run and --preview are for classifiers")
    refuse_other_things(bundle, data)
    piece = prepare(data, options, World(), tell)
    if preview is not None:
        write_preview(
            preview,
            piece.learnt_from,
            piece.dataset.classes,
            Augmenter(options.augment),
            simulated=piece.filled.simulated,
            seed=options.seed,
        )
        say(f"{preview}: {options.augment} augmentation of {len(piece.learnt_from)} training pictures")
        return
    for line in _plan(piece, bundle, _seconds_per_picture(piece)):
        say(line)


def _plan(piece: Workpiece, bundle: Path, seconds_per_picture: float) -> list[str]:
    options, dataset = piece.options, piece.dataset
    lines = [
        f"{split}: " + ", ".join(f"{name} {count}" for name, count in dataset.counts(split).items())
        for split in dataset.splits
    ]
    lines.append("roles: " + ", ".join(f"{spec.name} {spec.role}" for spec in dataset.classes))
    findings = survey(dataset)
    lines.append(f"findings: {len(findings)}" if findings else "findings: none")
    lines.append(f"imbalance: {piece.plan.kind}; {piece.plan.why}")
    lines.append(f"learning: {options.stage_plan} with {options.optimiser_plan}, peak rate {options.peak_rate:g}")
    epoch_s = len(piece.learnt_from) * seconds_per_picture
    if options.stage_plan == "head":
        lines.append("time: one pass over the pictures, then seconds")
    else:
        lines.append(
            f"time: {options.epochs} epochs of {epoch_s:.0f} s, {options.epochs * epoch_s / 60:.1f} min on this machine"
            + ("" if options.time_budget_s is None else f", cut to {options.time_budget_s:.0f} s by --time-budget")
        )
    lines.append(f"nothing was trained; leave out --dry-run to write {bundle}")
    return lines


def _seconds_per_picture(piece: Workpiece) -> float:
    """Measured on a few steps of the very loop, whose outcome is thrown away."""
    options = replace(piece.options, epochs=1, ema_decay=0.0, stages="all", time_budget_s=None)
    network = build_resnet18(len(piece.dataset.classes)).to(piece.device).to(memory_format=torch.channels_last)
    task = classify_task(piece)
    task.pictures = min(task.pictures, (_STEPS + 1) * options.batch_size)
    ends: list[float] = []

    def note(stage: str, done: int, total: int, message: str = "") -> None:
        ends.append(time.monotonic())

    started = time.monotonic()
    fit(network, task, options, world=World(), device=piece.device, tell=note)
    steps_s = ends[-1] - ends[0] if len(ends) > 1 else ends[0] - started
    return steps_s / max(1, len(ends) - 1) / min(options.batch_size, task.pictures)
