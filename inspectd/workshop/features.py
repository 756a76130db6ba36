"""The head alone, on features that the backbone computed once: seconds instead of minutes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inspectd.frame import U8
from inspectd.model.export import normalise
from inspectd.model.preprocess import PreprocessSpec
from inspectd.progress import Tell
from inspectd.workshop.imbalance import ImbalancePlan
from inspectd.workshop.numerics import half_precision, seed_everything
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.task import Score

_FEATURE_BATCH = 64
_HEAD_EPOCHS = 100
_HEAD_BATCH = 64
_HEAD_RATE = 1e-3
_HEAD_DECAY = 1e-2

Judge = Callable[[npt.NDArray[np.float32]], Score]
"""From validation logits [N, classes] to a score."""


@torch.no_grad()
def backbone_features(
    network: nn.Module, pixels: U8, spec: PreprocessSpec, device: torch.device, options: TrainOptions, tell: Tell
) -> Tensor:
    """What the last layer of a ResNet sees: uint8 [N, H, W, 3] -> float32 [N, 512], on the CPU."""
    trunk = copy.deepcopy(network).eval()
    trunk.fc = nn.Identity()
    half = half_precision(device, options)
    parts = []
    for start in range(0, len(pixels), _FEATURE_BATCH):
        x = normalise(torch.from_numpy(pixels[start : start + _FEATURE_BATCH]), spec)
        with torch.autocast(device.type, half, enabled=half is not None):
            parts.append(trunk(x.to(device, memory_format=torch.channels_last)).float().cpu())
        tell("backbone features", min(len(pixels), start + _FEATURE_BATCH), len(pixels))
    return torch.cat(parts)


def fit_head(
    head: nn.Linear,
    features: Tensor,
    labels: npt.NDArray[np.int64],
    val_features: Tensor,
    judge: Judge,
    plan: ImbalancePlan,
    options: TrainOptions,
    tell: Tell,
) -> Score:
    """Train the last layer in place on float32 features [N, 512]; it keeps the weights of its best epoch."""
    seed_everything(options.seed, 0xEAD)
    generator = torch.Generator().manual_seed(options.seed)
    optimiser = torch.optim.AdamW(head.parameters(), lr=_HEAD_RATE, weight_decay=_HEAD_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _HEAD_EPOCHS)
    y = torch.from_numpy(labels)
    best, best_state = Score(()), copy.deepcopy(head.state_dict())
    for epoch in range(_HEAD_EPOCHS):
        for index in torch.split(plan.order(labels, generator), _HEAD_BATCH):
            seen = nn.functional.dropout(features[index], options.dropout)
            loss = plan.loss(head(seen), y[index], options.label_smoothing)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        schedule.step()
        with torch.no_grad():
            score = judge(head(val_features).numpy())
        if score.key > best.key:
            best, best_state = score, copy.deepcopy(head.state_dict())
        tell("training the head", epoch + 1, _HEAD_EPOCHS)
    head.load_state_dict(best_state)
    return best
