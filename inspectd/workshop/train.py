"""Fine-tuning: from a folder of labelled pictures to a gated bundle.

read -> plan -> [head on cached features] -> fit -> settle -> gate the copies -> calibrate -> bundle, in place at once
"""

from __future__ import annotations

from pathlib import Path

import structlog
import torch
from torch import nn

from inspectd.model.bundle import Bundle
from inspectd.model.network import build_resnet18, load_initial_weights
from inspectd.progress import Tell
from inspectd.workshop.assemble import fill_bundle
from inspectd.workshop.augment import Augmenter
from inspectd.workshop.classify import ClassifyTask, head_dropout
from inspectd.workshop.features import backbone_features, fit_head
from inspectd.workshop.loop import EpochRow
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.training import Attempt, fit_network, log_start, start_as_identity, train_bundle
from inspectd.workshop.workpiece import Workpiece, prepare

log = structlog.get_logger(__name__)

_SETTLE_BATCH = 32
_FINISH_S = 60.0  # for quantising and judging


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
    """Fine-tune a ResNet18 on `data` and write it to `bundle`; see `train_bundle`.

    Raises:
        DataError: the pictures cannot be used, or `bundle` holds something else.
        InspectdError: no copy passed its gate, and the bundle that is there has one.
        UsageError: the options make no sense here, or an unfinished or a running training is in the way.
    """
    return train_bundle(
        data,
        bundle,
        lambda world, told: prepare(data, options, world, told),
        _fit,
        fill_bundle,
        tell,
        resume=resume,
        restart=restart,
        on_epoch=on_epoch,
    )


def _fit(piece: Workpiece, attempt: Attempt) -> nn.Module:
    """The trained network, on the CPU, in eval mode."""
    options = piece.options
    log_start(piece, len(piece.learnt_from))
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        network = build_resnet18(len(piece.dataset.classes))
        if options.from_scratch:
            start_as_identity(network)
        load_initial_weights(network, options.weights)
    network.to(piece.device).to(memory_format=torch.channels_last)
    task = classify_task(piece)
    if options.stage_plan == "head" or (options.stage_plan == "progressive" and not attempt.run.exists):
        _fit_head(network, task, piece, attempt.tell)
    if options.stage_plan != "head":
        with head_dropout(network, options.dropout):
            fit_network(network, task, piece, attempt, finish_s=_FINISH_S, settled=network, settle_batch=_SETTLE_BATCH)
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
