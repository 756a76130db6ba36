"""The classifier as a task for the loop: batches of preprocessed pictures, loss, and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inspectd.frame import U8
from inspectd.model.data import Pictures
from inspectd.model.export import normalise
from inspectd.model.manifest import ClassSpec
from inspectd.model.preprocess import PreprocessSpec
from inspectd.workshop.imbalance import ImbalancePlan
from inspectd.workshop.metric import score
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.task import Score, Task

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""uint8 [B, H, W, 3] to the same, by the generator alone."""

_JUDGE_BATCH = 64

Batch = tuple[Tensor, Tensor]  # float32 [B, 3, H, W] normalised, channels last; int64 [B]


class ClassifyTask(Task):
    """Pictures in memory, augmented and normalised as they are needed."""

    def __init__(
        self,
        train: Pictures,
        val: Pictures,
        classes: Sequence[ClassSpec],
        spec: PreprocessSpec,
        plan: ImbalancePlan,
        augment: Augment,
        options: TrainOptions,
        device: torch.device,
    ) -> None:
        self.pictures = len(train)
        self._train, self._val = train, val
        self._classes, self._spec, self._plan = classes, spec, plan
        self._augment, self._options, self._device = augment, options, device

    def order(self, generator: torch.Generator) -> Tensor:
        return self._plan.order(self._train.labels, generator)

    def batch(self, index: Tensor, generator: torch.Generator) -> Batch:
        rows = index.numpy()
        pixels = self._augment(torch.from_numpy(self._train.pixels[rows]), generator)
        x = normalise(pixels, self._spec).to(self._device, memory_format=torch.channels_last)
        return x, torch.from_numpy(self._train.labels[rows]).to(self._device)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        return self._plan.loss(network(x).float(), y, self._options.label_smoothing)

    def judge(self, network: nn.Module) -> Score:
        return self.score(self.logits(network, self._val.pixels))

    def score(self, logits: npt.NDArray[np.floating]) -> Score:
        """The score of these validation logits, [N, classes]."""
        options = self._options
        return score(logits, self._val.labels, self._classes, options.metric, options.max_false_rejects)

    def logits(self, network: nn.Module, pixels: U8) -> npt.NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, classes], as the network and the autocast around it are."""
        parts = []
        for start in range(0, len(pixels), _JUDGE_BATCH):
            x = normalise(torch.from_numpy(pixels[start : start + _JUDGE_BATCH]), self._spec)
            parts.append(network(x.to(self._device, memory_format=torch.channels_last)).float().cpu().numpy())
        return np.concatenate(parts)

    def plain_batches(self, size: int) -> Iterator[Tensor]:
        """All training pictures once, not augmented, in a seeded order: what statistics are settled on."""
        order = np.random.default_rng(self._options.seed).permutation(self.pictures)
        size = min(size, self.pictures)
        for start in range(0, self.pictures - size + 1, size):
            x = normalise(torch.from_numpy(self._train.pixels[order[start : start + size]]), self._spec)
            yield x.to(self._device, memory_format=torch.channels_last)


@contextmanager
def head_dropout(network: nn.Module, share: float) -> Iterator[None]:
    """Dropout before the last layer while training, without a layer that would change the weights' names."""
    if not share:
        yield
        return

    def drop(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (nn.functional.dropout(inputs[0], share, module.training),)

    head = network.get_submodule("fc")
    handle = head.register_forward_pre_hook(drop)
    try:
        yield
    finally:
        handle.remove()
