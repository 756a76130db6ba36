"""Fine-tuning: from a folder of labelled pictures to a gated bundle.

read -> plan -> [head on cached features] -> fit -> settle -> gate the copies -> calibrate -> bundle, in place at once
"""

from __future__ import annotations

import time
from pathlib import Path

import structlog
import torch
from torch import nn

from inspectd.errors import UsageError
from inspectd.model.bundle import Bundle, load_bundle
from inspectd.model.export import settle_batch_norm
from inspectd.model.network import build_resnet18, load_initial_weights
from inspectd.progress import Tell
from inspectd.workshop.assemble import fill_bundle
from inspectd.workshop.augment import Augmenter
from inspectd.workshop.checkpoint import RunFolder
from inspectd.workshop.classify import ClassifyTask, head_dropout
from inspectd.workshop.distributed import joined_world
from inspectd.workshop.features import backbone_features, fit_head
from inspectd.workshop.loop import EpochRow, fit
from inspectd.workshop.numerics import half_precision
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.place import refuse_other_things, replacing
from inspectd.workshop.task import Score
from inspectd.workshop.workpiece import Workpiece, identity, prepare

log = structlog.get_logger(__name__)

_SETTLE_BATCH = 32
_FINISH_SHARE, _FINISH_MOST_S = 0.25, 60.0  # of a time budget, kept for quantising and judging


def train(
    data: Path,
    bundle: Path,
    options: TrainOptions,
    tell: Tell | None = None,
    *,
    resume: bool = False,
    restart: bool = False,
    on_epoch: EpochRow | None = None,
) -> Bundle | None:
    """Fine-tune a ResNet18 on `data` and write it to `bundle`, a new directory or one that held a bundle.

    Checkpoints lie in `BUNDLE.run` until the bundle is whole and in its place. The same data, options and
    machine give the same weights, resumed or not. Started by `torchrun`, process 0 alone writes; the
    others return None.

    Raises:
        DataError: the pictures cannot be used, or `bundle` holds something else.
        UsageError: the options make no sense here, or an unfinished run is in the way.
    """
    tell = tell or _silent
    started = time.monotonic()
    refuse_other_things(bundle)
    with joined_world() as world:
        if world.main:
            settle_unfinished(RunFolder.beside(bundle, {}), resume=resume, restart=restart)
        piece = prepare(data, options, world, tell if world.main else _silent)
        run = RunFolder.beside(bundle, identity(piece))
        network = _fit(piece, run, started, tell if world.main else _silent, on_epoch)
    if not world.main:
        return None
    trained_s = time.monotonic() - started
    with replacing(bundle) as work:
        fill_bundle(work, network, piece, trained_s, tell)
    run.remove()
    return load_bundle(bundle)


def settle_unfinished(run: RunFolder, *, resume: bool, restart: bool) -> None:
    """Decide about an unfinished run that lies there: only what the user says happens to it.

    Raises:
        UsageError: there is one, and nothing was said; or there is none to resume.
    """
    if restart:
        run.remove()
    elif run.exists and not resume:
        raise UsageError(f"{run.path}: an unfinished run; continue it with --resume, or start over with --restart")
    elif resume and not run.exists:
        raise UsageError(f"{run.path}: no unfinished run to resume; leave out --resume")


def _silent(stage: str, done: int, total: int, message: str = "") -> None:
    """Processes other than the first say nothing."""


# -- fitting ------------------------------------------------------------------------------------------


def _fit(piece: Workpiece, run: RunFolder, started: float, tell: Tell, on_epoch: EpochRow | None) -> nn.Module:
    """The trained network, on the CPU, in eval mode."""
    options, device = piece.options, piece.device
    half = half_precision(device, options)
    log.info(
        "training",
        pictures=len(piece.learnt_from),
        device=str(device),
        dtype=str(half or torch.float32),
        stages=options.stage_plan,
        optimiser=options.optimiser_plan,
        rate=options.peak_rate,
    )
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        network = build_resnet18(len(piece.dataset.classes))
        if options.from_scratch:
            start_as_identity(network)
        load_initial_weights(network, options.weights)
    network.to(device).to(memory_format=torch.channels_last)
    task = classify_task(piece)
    if options.stage_plan != "all" and not run.exists:
        _fit_head(network, task, piece, tell)
    if options.stage_plan != "head":
        budget = None if options.time_budget_s is None else _time_left(options.time_budget_s, started)
        with head_dropout(network, options.dropout):
            fit(
                network,
                task,
                options,
                world=piece.world,
                device=device,
                run=run,
                budget_s=budget,
                tell=tell,
                on_epoch=on_epoch,
            )
        if piece.world.main:
            _settle(network, task, half)
    return network.to("cpu").eval()


def classify_task(piece: Workpiece) -> ClassifyTask:
    """The task that the loop runs."""
    return ClassifyTask(
        piece.learnt_from,
        piece.pictures["val"],
        piece.dataset.classes,
        piece.spec,
        piece.plan,
        Augmenter(piece.options.augment),
        piece.options,
        piece.device,
    )


def start_as_identity(network: nn.Module) -> None:
    """Let every residual block begin as nothing but its shortcut: the last norm of each scales with zero.

    Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 5.1. Deep networks start to learn sooner so.
    """
    for name, module in network.named_modules():
        if name.endswith("bn2") and isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)


def _fit_head(network: nn.Module, task: ClassifyTask, piece: Workpiece, tell: Tell) -> None:
    """Stage 1, the same in every process: the head alone, on features that are computed once."""
    features = [
        backbone_features(network, pictures.pixels, piece.spec, piece.device, piece.options, tell)
        for pictures in (piece.learnt_from, piece.pictures["val"])
    ]
    head = nn.Linear(*reversed(network.get_submodule("fc").weight.shape))  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(piece.options.seed)
        head.reset_parameters()
        labels = piece.learnt_from.labels
        score = fit_head(head, features[0], labels, features[1], task.score, piece.plan, piece.options, tell)
    network.get_submodule("fc").load_state_dict(head.state_dict())
    log.info("head_trained", **{name.replace(" ", "_"): round(value, 4) for name, value in score.columns.items()})


def _settle(network: nn.Module, task: ClassifyTask, half: torch.dtype | None) -> None:
    """Replace the statistics that moved along with training by plain averages, where that judges better."""
    device = next(network.parameters()).device

    def judged() -> Score:
        with torch.no_grad(), torch.autocast(device.type, half, enabled=half is not None):
            return task.judge(network.eval())

    before = judged()
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.autocast(device.type, half, enabled=half is not None):
        settle_batch_norm(network, task.plain_batches(_SETTLE_BATCH))
    if judged().key < before.key:
        network.load_state_dict(kept)


def _time_left(budget_s: float, started: float) -> float:
    """What a time budget leaves for fitting, after reading, and before quantising and judging."""
    finish = min(_FINISH_SHARE * budget_s, _FINISH_MOST_S)
    return max(0.25 * budget_s, budget_s - finish - (time.monotonic() - started))
